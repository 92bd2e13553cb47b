from .config import MAX_BYTES as MAX_BYTES
from .config import Bound as Bound
from .config import load_config as load_config
from .gate import Judged as Judged
from .gate import judge as judge
from .gate import require_held as require_held
from .gate import require_known as require_known
