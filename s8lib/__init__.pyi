"""The public names, each with its home. `__init__.py` reads this file and imports a name when it is first used."""

from s8lib import colab as colab
from s8lib import publish as publish
from s8lib import report as report
from s8lib.colab import find_run as find_run
from s8lib.data.cifar100 import Cifar100 as Cifar100
from s8lib.data.cifar100 import DataError as DataError
from s8lib.data.cifar100 import Split as Split
from s8lib.data.cifar100 import load_cifar100 as load_cifar100
from s8lib.data.pictures import ImageError as ImageError
from s8lib.data.pictures import load_folder as load_folder
from s8lib.data.synthetic import choose_data as choose_data
from s8lib.data.synthetic import synthetic_cifar100 as synthetic_cifar100
from s8lib.hub_client import HubError as HubError
from s8lib.inference import Guess as Guess
from s8lib.inference import predict as predict
from s8lib.machine.device import DeviceError as DeviceError
from s8lib.metrics import Metrics as Metrics
from s8lib.metrics import evaluate as evaluate
from s8lib.models.networks import ResNet11 as ResNet11
from s8lib.models.networks import ResNet42 as ResNet42
from s8lib.models.networks import WideResNet as WideResNet
from s8lib.models.networks import build_model as build_model
from s8lib.models.networks import load_model as load_model
from s8lib.models.weights import ModelError as ModelError
from s8lib.presets import PRESETS as PRESETS
from s8lib.presets import QUICK as QUICK
from s8lib.presets import QUICK_LONG as QUICK_LONG
from s8lib.presets import SEED_100 as SEED_100
from s8lib.presets import SEED_200 as SEED_200
from s8lib.presets import choose_recipe as choose_recipe
from s8lib.presets import run_name as run_name
from s8lib.publish.publisher import HubPublisher as HubPublisher
from s8lib.recipe import Knobs as Knobs
from s8lib.recipe import Recipe as Recipe
from s8lib.recipe import RecipeError as RecipeError
from s8lib.report import data_of as data_of
from s8lib.run.checkpoint import Epoch as Epoch
from s8lib.run.checkpoint import EpochLog as EpochLog
from s8lib.run.folder import RunFolder as RunFolder
from s8lib.run.save import RunError as RunError
from s8lib.run.save import RunFault as RunFault
from s8lib.session import NonFiniteLoss as NonFiniteLoss
from s8lib.trainer import train as train

__version__: str
