"""What speaks MQTT for us: the drivers, by name."""

from collections.abc import Callable

from sensors.broker import Broker
from sensors.line import Line, Receive


def driver(name: str) -> Callable[[Broker, int, Receive], Line]:
    """Find the driver of that name: what makes lines.

    Raises:
        ValueError: It is not installed.
    """
    if name == "mqtt5":
        try:
            from sensors.mqtt5_line import Mqtt5Line
        except ImportError as error:
            raise ValueError(
                'broker.driver = "mqtt5" needs the package of that name: '
                'pip install "adaptive-attention[fast]"'
            ) from error
        return Mqtt5Line
    from sensors.aiomqtt_line import AiomqttLine

    return AiomqttLine
