"""The tasks there are, and the stand-ins that replace published data at the mini scale."""

from lra.tasks import Task
from lra.tasks.image import Image
from lra.tasks.image_stand_in import ImageStandIn
from lra.tasks.listops import ListOps
from lra.tasks.pathfinder import Pathfinder
from lra.tasks.pathfinder_stand_in import PathfinderStandIn
from lra.tasks.retrieval import Retrieval
from lra.tasks.retrieval_stand_in import RetrievalStandIn
from lra.tasks.text import Text
from lra.tasks.text_stand_in import TextStandIn

TASKS: dict[str, type[Task]] = {
    "listops": ListOps,
    "text": Text,
    "retrieval": Retrieval,
    "image": Image,
    "pathfinder": Pathfinder,
    "pathx": Pathfinder,
}
STAND_INS: dict[str, type[Task]] = {
    "text": TextStandIn,
    "retrieval": RetrievalStandIn,
    "image": ImageStandIn,
    "pathfinder": PathfinderStandIn,
    "pathx": PathfinderStandIn,
}
