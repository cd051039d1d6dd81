"""The models here are small: threads would wait for each other more than they work."""

import torch

torch.set_num_threads(1)
