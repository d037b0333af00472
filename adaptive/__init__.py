"""Real-time adaptive attention controller for sensor streams."""

from adaptive.controller import Answer as Answer
from adaptive.controller import Controller as Controller
from adaptive.controller import Estimate as Estimate
from adaptive.controller import Explanation as Explanation
from adaptive.prequential import Label as Label
from adaptive.prequential import Results as Results
from adaptive.prequential import replay_arrays as replay_arrays
from adaptive.settings import Alarms as Alarms
from adaptive.settings import Level as Level
from adaptive.settings import Model as Model
