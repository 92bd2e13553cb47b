from .in_process import InProcess as InProcess
from .protocol import Engine as Engine
from .ray_engine import FORWARDED as FORWARDED
from .ray_engine import WORKER_ENVIRONMENT as WORKER_ENVIRONMENT
from .ray_engine import RayEngine as RayEngine
from .ray_start import MAX_STARTS as MAX_STARTS
from .ray_start import start_with_retries as start_with_retries
