from .importing import import_file as import_file
from .importing import read_dna as read_dna
from .lake_tables import export_tables as export_tables
from .writing import export_file as export_file
from .writing import write_dna as write_dna
