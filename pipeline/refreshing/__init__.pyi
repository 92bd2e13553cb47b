from .config import Config as Config
from .config import load_config as load_config
from .steps import Refreshed as Refreshed
from .steps import refresh as refresh
from .webhook import not_told as not_told
