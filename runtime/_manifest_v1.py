"""Schema 1, which knew VAR alone: square stages, six fixed inputs, one file for each graph."""

from collections.abc import Mapping

from nextscale.runtime._checked_json import JsonNode
from nextscale.runtime._manifest import FileInfo, GraphInfo, ModelInfo, VerifyInfo
from nextscale.runtime._manifest_parts import read_graph, read_token_maps
from nextscale.runtime._var_request import schema_1_request

FAMILY = "var"
_ROLES = ("generate", "stage", "decoder")


def read_model(node: JsonNode) -> ModelInfo:
    patch_nums = [item.integer(1, 4096) for item in node["patch_nums"].elements()]
    if not patch_nums or patch_nums != sorted(patch_nums):
        node["patch_nums"].refuse("side lengths in ascending order")
    image_size, latent_size = node["image_size"].integer(1), node["latent_size"].integer(1)
    if latent_size != patch_nums[-1]:
        node["latent_size"].refuse(f"{patch_nums[-1]}, the last of patch_nums")
    return ModelInfo(
        num_classes=node["num_classes"].integer(1),
        stage_sizes=tuple((pn, pn) for pn in patch_nums),
        image_size=(image_size, image_size),
        vocab_size=node["vocab_size"].integer(1),
        depth=node["depth"].integer(1),
        embed_dim=node["embed_dim"].integer(1),
        num_heads=node["num_heads"].integer(1),
        latent_channels=node["latent_channels"].integer(1),
        latent_size=(latent_size, latent_size),
    )


def read_graphs(node: JsonNode, model: ModelInfo, files: Mapping[str, FileInfo]) -> dict[str, GraphInfo]:
    request = schema_1_request(model)
    return {role: read_graph(role, node[role], node[role]["file"], request, files) for role in _ROLES}


def read_verify(node: JsonNode, model: ModelInfo) -> VerifyInfo:
    """A greedy generation."""
    labels = [item.integer(0, model.num_classes) for item in node["class_labels"].elements()]
    if not labels:
        node["class_labels"].refuse("at least one label")
    return VerifyInfo(
        seed=node["seed"].integer(0, 2**64 - 1),
        inputs={"class_labels": labels, "cfg_scale": node["cfg_scale"].number(0), "top_k": 1, "top_p": 0},
        token_maps=read_token_maps(node["token_maps"], model.num_tokens, model.vocab_size, len(labels)),
    )
