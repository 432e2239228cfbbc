"""The tasks there are, and the stand-ins that replace published data at the mini scale."""

from lra.tasks import Task
from lra.tasks.image import Image
from lra.tasks.image_stand_in import ImageStandIn
from lra.tasks.listops import ListOps

TASKS: dict[str, type[Task]] = {"listops": ListOps, "image": Image}
STAND_INS: dict[str, type[Task]] = {"image": ImageStandIn}
