from .importing import import_file as import_file
from .importing import read_dna as read_dna
from .reading import ReferenceFile as ReferenceFile
from .reading import read_file as read_file
from .writing import export_file as export_file
from .writing import write_dna as write_dna
