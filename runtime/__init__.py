"""What a user deploys: bundles, sessions and the next-scale loop. Imports numpy and onnxruntime only."""
