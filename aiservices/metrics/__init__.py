"""What Prometheus may ask of the process. Every series has its name here and nowhere else.

===========  ====================================================================
``process``  series of the process as a whole, and all of them as Prometheus text
``service``  series of one service
``lag``      how late the event loop wakes up
===========  ====================================================================

docs/monitoring.md lists them; a test holds that it does.
"""

from aiservices.metrics.lag import watch_loop_lag
from aiservices.metrics.process import DeviceMemory, Metrics
from aiservices.metrics.service import ServiceMetrics

__all__ = ["DeviceMemory", "Metrics", "ServiceMetrics", "watch_loop_lag"]
