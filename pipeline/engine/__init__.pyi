from .in_process import InProcess as InProcess
from .protocol import Engine as Engine
from .ray_engine import RayEngine as RayEngine
