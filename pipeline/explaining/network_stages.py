"""Names what a layer reacts to, by a rule of thumb, from how deep it lies in its network.

>>> stages_of(["layer1", "layer4"], ["conv1", "layer1", "layer2", "layer3", "layer4"])
('colour and edges', 'objects')
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import UsageError
from pipeline.networks import default_layers

STAGES = ("colour and edges", "texture", "shape", "objects")
"""What the quarters of a network react to, the first layers first.

Zeiler and Fergus (2014, "Visualizing and understanding convolutional networks") and Olah et al.
(2017, "Feature visualization") found this order in networks that were trained on ImageNet.
"""


def stages_of(layers: Sequence[str], network: Sequence[str]) -> tuple[str, ...]:
    """Names the stage of each layer by its place among the layers of its network.

    This is a rule of thumb and no finding: nobody looked at what these neurons react to.

    Args:
        layers: The layers that are looked at.
        network: Layers that are spread over the whole network, from the input to the output, as
            `default_layers` names them.

    Returns:
        One of `STAGES` for each layer; an empty text for a layer that is not among those of the
        network, and for all if the network has fewer layers than there are stages.
    """
    count = len(network) if len(network) >= len(STAGES) else 0
    named = {layer: STAGES[len(STAGES) * at // count] for at, layer in enumerate(network[:count])}
    return tuple(named.get(layer, "") for layer in layers)


def network_layers(extractor: str) -> tuple[str, ...]:
    """Names layers that are spread over a whole network, or none if they are not known here.

    Args:
        extractor: The name of the network.

    Returns:
        The layers from the input to the output, as `stages_of` takes them.
    """
    try:
        return default_layers(extractor)
    except UsageError:
        return ()
