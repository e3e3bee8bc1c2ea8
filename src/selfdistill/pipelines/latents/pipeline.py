"""images -> latents."""

from kedro.pipeline import Node, Pipeline

from selfdistill.pipelines.latents import nodes

_INPUTS = {
    "images": "images",
    "latents": "params:latents",
    "vae": "params:vae",
    "distributed": "params:distributed",
    "scratch": "latents_scratch",
    "place": "latents_place",
}


def create_pipeline() -> Pipeline:
    """Return the stage for one set of latents, which the registry gives a namespace of its own."""
    encode = Node(nodes.encode_latents, inputs=_INPUTS, outputs="latents", name="encode_latents")
    return Pipeline([encode])


def create_share_pipeline() -> Pipeline:
    """Return one host's share of the stage, which publishes nothing."""
    share = Node(
        nodes.encode_latents_share, inputs=_INPUTS, outputs=None, name="encode_latents_share"
    )
    return Pipeline([share])


def create_repair_pipeline() -> Pipeline:
    """Return the repair of published latents; their images must be whole."""
    repair = Node(
        nodes.repair_latents,
        inputs=_INPUTS,
        outputs=None,
        name="repair_latents",
    )
    return Pipeline([repair])
