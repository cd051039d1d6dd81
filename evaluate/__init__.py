"""Quality: agreement with full precision, metrics of pictures, errors of attention, saturation."""

__all__ = [
    "attention_error",
    "comparison",
    "concept_judge",
    "feature_network",
    "generated_statistics",
    "image_comparison",
    "image_metrics",
    "image_statistics",
    "imagenet_classes",
    "inception_network",
    "integer_products",
    "lpips",
    "plot_attention_error",
    "prompt_scores",
    "psnr",
    "reference_statistics",
    "saturation",
    "teacher_forced",
    "vgg16_features",
]
