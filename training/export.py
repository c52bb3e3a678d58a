"""Writes a trained CenterPoint as a model folder: two ONNX files (Autoware's names) and model.yaml."""

import argparse
from pathlib import Path

import onnx
import torch

from model import CLASSES, HEADS, CenterPoint

DESCRIPTION = """\
# The demo model: CenterPoint-Pillar trained on simulated scenes, see MODEL_CARD.md.
format: 1
name: demo
precision: float
layout: two_part
classes: [{classes}]
frame: base_link              # x forward, y left, z up, origin on the ground below the vehicle
encoder:
  file: pts_voxel_encoder.onnx
  input: input_features       # [pillars, points, features]
  output: pillar_features     # [pillars, 1, channels]
backbone:
  file: pts_backbone_neck_head.onnx
  input: spatial_features     # [1, channels, grid y, grid x]
  outputs: {{ heatmap: heatmap, reg: reg, height: height, dim: dim, rot: rot, vel: vel }}
points:
  features: [x, y, z, time_lag]
  intensity_scale: 1.0
  sweeps: 2
  sweep_period: 0.1
grid:
  min: [{min[0]}, {min[1]}, {min[2]}]
  max: [{max[0]}, {max[1]}, {max[2]}]
  pillar: [{pillar}, {pillar}]
  max_pillars: 40000
  max_points: {max_points}
  decorations: [cluster_xyz, centre_xy]
  downsample: {downsample}
  ground: 0.0                 # height of the ground in the frame above
head:
  heatmap: logit
  dim_scale: log
  dim_order: wlh
  rot_order: sin_cos
  yaw: legacy                 # yaw = -theta - pi/2
  velocity_frame: ego
post:
  peak_kernel: 0              # people stand closer than peaks can: suppression tells them apart
  score_thresholds: [{thresholds}]
  yaw_norm_thresholds: [0.0, 0.0, 0.0, 0.0, 0.0]
  max_detections: 500
  circle_nms: {{ distance: 0.5, unit: metres }}
  iou_nms: {{ threshold: 0.1, search_distance: 10.0 }}
"""


def export(model, folder, thresholds=(0.35,) * 5):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = model.float().eval().to(memory_format=torch.contiguous_format)
    model.encoder.fold_scale()
    g = model.grid
    parts = [
        (model.encoder, torch.zeros(16, g.max_points, 9), "pts_voxel_encoder.onnx",
         ["input_features"], ["pillar_features"],
         {"input_features": {0: "pillars", 1: "points"}, "pillar_features": {0: "pillars"}}),
        (model.net, torch.zeros(1, 32, g.size, g.size), "pts_backbone_neck_head.onnx",
         ["spatial_features"], list(HEADS), None),
    ]
    for module, example, name, inputs, outputs, dynamic in parts:
        path = folder / name
        torch.onnx.export(module, (example,), str(path), input_names=inputs, output_names=outputs,
                          dynamic_axes=dynamic, opset_version=17, dynamo=False,
                          do_constant_folding=True)
        onnx.checker.check_model(onnx.load(path), full_check=True)
    text = DESCRIPTION.format(classes=", ".join(CLASSES), min=g.min, max=g.max, pillar=g.pillar,
                              max_points=g.max_points, downsample=g.downsample,
                              thresholds=", ".join(f"{t:g}" for t in thresholds))
    (folder / "model.yaml").write_text(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", help="a file that train.py wrote; without it the weights are random")
    parser.add_argument("--out", default="models/demo")
    args = parser.parse_args()
    torch.manual_seed(0)
    net = CenterPoint()
    if args.checkpoint:
        net.load_state_dict(torch.load(args.checkpoint, map_location="cpu")["model"])
    export(net, args.out)
    print(f"wrote {args.out}, {sum(p.numel() for p in net.parameters())} parameters")
