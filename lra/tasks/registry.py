"""List the tasks, and the stand-ins that replace published data at the mini scale."""

from lra.tasks import Task
from lra.tasks.image import Image
from lra.tasks.listops import ListOps
from lra.tasks.pathfinder import Pathfinder
from lra.tasks.recall import Recall
from lra.tasks.retrieval import Retrieval
from lra.tasks.stand_ins.image import ImageStandIn
from lra.tasks.stand_ins.pathfinder import PathfinderStandIn
from lra.tasks.stand_ins.retrieval import RetrievalStandIn
from lra.tasks.stand_ins.text import TextStandIn
from lra.tasks.text import Text

TASKS: dict[str, type[Task]] = {
    "listops": ListOps,
    "text": Text,
    "retrieval": Retrieval,
    "image": Image,
    "pathfinder": Pathfinder,
    "pathx": Pathfinder,
    "recall": Recall,
}
STAND_INS: dict[str, type[Task]] = {
    "text": TextStandIn,
    "retrieval": RetrievalStandIn,
    "image": ImageStandIn,
    "pathfinder": PathfinderStandIn,
    "pathx": PathfinderStandIn,
}
