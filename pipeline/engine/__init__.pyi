from .in_process import InProcess as InProcess
from .on_demand import OnDemand as OnDemand
from .protocol import Engine as Engine
from .ray_engine import RayEngine as RayEngine
