"""Write transformers' OneFormer as ONNX, with what a program has to know to use it in the file's metadata.

    python export.py --config tiny --out oneformer.onnx
    python export.py --weights oneformer_coco_swin_large --size 800 --out oneformer.onnx

Without --weights they are random: such a model tells speed and rounding, and segments nothing.
"""

import argparse
import ast
import json
import os
import sys
from collections import Counter
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import that would start it
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import onnx
import onnxruntime
import torch
from transformers import OneFormerConfig, OneFormerForUniversalSegmentation, SwinConfig
from transformers.models.oneformer import modeling_oneformer

# What CLIP's tokenizer makes of "the task is semantic", and so on, filled up with zeros.
TASKS = {
    "semantic": [49406, 518, 10549, 533, 29119, 1550, 49407],
    "instance": [49406, 518, 10549, 533, 34572, 49407],
    "panoptic": [49406, 518, 10549, 533, 1072, 24755, 49407],
}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
COCO_CLASSES, COCO_THINGS = 133, 80  # things come first
INPUTS, OUTPUTS = ["pixel_values", "task_inputs"], ["class_queries_logits", "masks_queries_logits"]
OPSET, SCOPES = 20, "pkg.torch.onnx.name_scopes"
NO_OBJECT = -4.0  # its logit where weights are random
FARTHEST = 1e-3  # that ONNX may be from torch, relative


def swin(embed_dim, depths, num_heads, window_size=7, image_size=224, drop_path_rate=0.3):
    return SwinConfig(
        embed_dim=embed_dim,
        depths=depths,
        num_heads=num_heads,
        window_size=window_size,
        image_size=image_size,
        drop_path_rate=drop_path_rate,
        use_absolute_embeddings=False,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def configuration(name):
    """As small as in transformers' tests, or as published for COCO; and the picture's side."""
    if name == "tiny":
        small = {"hidden_dim": 64, "mask_dim": 64, "conv_dim": 64, "text_encoder_width": 64}
        layers = {"encoder_feedforward_dim": 32, "dim_feedforward": 64, "encoder_layers": 2, "decoder_layers": 4}
        backbone = swin(16, [2, 2, 2, 2], [1, 1, 2, 2], window_size=4)
        return OneFormerConfig(backbone_config=backbone, num_queries=10, num_labels=6, **small, **layers), 128
    if name == "swin-t":
        return OneFormerConfig(backbone_config=swin(96, [2, 2, 6, 2], [3, 6, 12, 24]), num_labels=COCO_CLASSES), 512
    backbone = swin(192, [2, 2, 18, 2], [6, 12, 24, 48], window_size=12, image_size=384)
    return OneFormerConfig(backbone_config=backbone, num_labels=COCO_CLASSES), 800


def build(arguments):
    """The model, and the side of its pictures."""
    if arguments.weights is None:
        config, side = configuration(arguments.config)
        torch.manual_seed(arguments.seed)
        config.backbone_config._attn_implementation = "eager"
        model = OneFormerForUniversalSegmentation(config)
        # Or most queries would be of no object, and nothing would be left to compare.
        model.model.transformer_module.decoder.class_embed.bias.data[-1] = NO_OBJECT
        return model, side
    config = OneFormerConfig.from_pretrained(arguments.weights, local_files_only=True)
    config.is_training = False
    config.backbone_config._attn_implementation = "eager"
    model = OneFormerForUniversalSegmentation.from_pretrained(
        arguments.weights, config=config, local_files_only=True, use_safetensors=True
    )
    return model, 800


class Logits(torch.nn.Module):
    """The two outputs that segmentations are made of."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values, task_inputs):
        found = self.model(pixel_values, task_inputs)
        return found.class_queries_logits, found.masks_queries_logits


def metadata(model, arguments):
    """What nextscale.paper.segmenter reads."""
    labels = model.config.id2label
    classes = [str(labels[number]) for number in range(len(labels))]
    told = {"mean": MEAN, "std": STD, "weights": f"random, of seed {arguments.seed}, so that agreement says little"}
    if arguments.weights is not None:
        told["weights"] = arguments.weights.name
    things = COCO_THINGS if len(classes) == COCO_CLASSES else len(classes) // 2
    found = list(range(things if arguments.things is None else arguments.things))
    if arguments.weights is not None and (arguments.weights / "preprocessor_config.json").exists():
        read = json.loads((arguments.weights / "preprocessor_config.json").read_text(encoding="utf-8"))
        told |= {"mean": read["image_mean"], "std": read["image_std"]}
        if arguments.things is None:
            found = read.get("metadata", {}).get("thing_ids", found)
    length = model.config.task_seq_len
    tasks = {task: ids + [0] * (length - len(ids)) for task, ids in TASKS.items()}
    return json.dumps({"tasks": tasks, "classes": classes, "things": found, **told})


def name_after_modules(model):
    """Names such as encoder.layers.0.blocks.0.mlp.fc2/MatMul, in the place of all that the exporter notes of a node."""
    numbers = Counter()
    for node in model.graph:
        *_, module, _ = ["", "", *ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))]
        name = f"{module.removeprefix('model.').removeprefix('model.') or 'model'}/{node.op_type}"
        node.name = f"{name}_{numbers[name]}" if numbers[name] else name
        numbers[name] += 1
        node.metadata_props.clear()
    for properties in (model.metadata_props, model.graph.metadata_props):
        properties.clear()


def write(model, size, told, out):
    """The graph, its weights in the file or, where it would be too large, beside it."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, *size, generator=generator)
    task = torch.tensor(json.loads(told)["tasks"]["panoptic"])[None]
    # It looks into the shapes of pictures, which no operator of ONNX can say.
    modeling_oneformer.torch_compilable_check = lambda *arguments, **options: None
    with torch.no_grad():
        program = torch.onnx.export(
            model, (pixels, task), input_names=INPUTS, output_names=OUTPUTS, opset_version=OPSET, dynamo=True
        )
        expected = model(pixels, task)
    name_after_modules(program.model)
    program.model.metadata_props["nextscale.segmentation"] = told
    program.save(out)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    found = session.run(OUTPUTS, dict(zip(INPUTS, (pixels.numpy(), task.numpy()), strict=True)))
    norm = np.linalg.norm
    return [float(norm(b - a.numpy()) / norm(a.numpy())) for a, b in zip(expected, found, strict=True)]


def sides(text):
    """Height and width, of H or H,W."""
    found = [int(part) for part in text.split(",")]
    if len(found) > 2 or any(side < 1 or side % 32 for side in found):
        raise argparse.ArgumentTypeError(f"{text}: expected H or H,W, multiples of 32")
    return (found * 2)[:2]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=["tiny", "swin-t", "swin-l"], default="swin-t", help="of random weights")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="config.json and model.safetensors")
    parser.add_argument("--seed", type=int, default=0, help="of random weights")
    parser.add_argument("--size", type=sides, metavar="H[,W]", help="of pictures, multiples of 32")
    parser.add_argument("--things", type=int, metavar="N", help="the first N classes have instances")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.weights is not None and not (arguments.weights / "config.json").exists():
        sys.exit(f"error: {arguments.weights}: no config.json; expected a OneFormer that transformers saved")
    try:
        model, side = build(arguments)
    except (OSError, ValueError) as error:  # what transformers says of a folder that is no model
        sys.exit(f"error: {arguments.weights}: {' '.join(str(error).split())}")
    size = arguments.size or [side, side]
    errors = write(Logits(model).eval(), size, metadata(model, arguments), arguments.out)
    onnx.checker.check_model(arguments.out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{arguments.out}: {size[1]} x {size[0]} pixels, {parameters / 1e6:.1f} M parameters")
    print(f"farthest from torch, relative: {max(errors):.1e}")
    if not max(errors) < FARTHEST:
        sys.exit(f"error: expected at most {FARTHEST:g}")


if __name__ == "__main__":
    main()
