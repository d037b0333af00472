"""Sensors: where samples come from, and what is done to them before anything is learned.

A leaf package: it imports neither `adaptive` nor `jax`.
"""

from sensors.broker import Broker as Broker
from sensors.connection import Connection as Connection
from sensors.connection import Message as Message
from sensors.connection import Refused as Refused
from sensors.file import FileSource as FileSource
from sensors.mqtt import MqttSource as MqttSource
from sensors.mqtt import Topic as Topic
from sensors.recordings import Annotation as Annotation
from sensors.recordings import Recording as Recording
from sensors.recordings import read as read
from sensors.sample import Feedback as Feedback
from sensors.sample import Item as Item
from sensors.sample import Rejected as Rejected
from sensors.sample import Sample as Sample
from sensors.sample import Source as Source
from sensors.sample import Stream as Stream
from sensors.sample import Unavailable as Unavailable
from sensors.simulated import SimulatedEcg as SimulatedEcg
from sensors.simulated import SimulatedTraffic as SimulatedTraffic
from sensors.transforms import Bandpass as Bandpass
from sensors.transforms import Chain as Chain
from sensors.transforms import Features as Features
from sensors.transforms import Fill as Fill
from sensors.transforms import Notch as Notch
from sensors.transforms import Pca as Pca
from sensors.transforms import Resample as Resample
from sensors.transforms import Standardise as Standardise
from sensors.transforms import Transform as Transform
