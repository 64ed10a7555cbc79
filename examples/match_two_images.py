"""Matches two photographs and draws where the best matches lie.

python examples/match_two_images.py first.jpg second.jpg matches.png
"""

import sys

import cv2
import numpy as np

import sfmprep as sp

if len(sys.argv) < 4:
    sys.exit(__doc__)
*paths, picture = sys.argv[1:]
features, matches = sp.match_images(*paths)

# Features are in pixels of the files, so they are drawn on the pixels as stored.
as_stored = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
first, second = (cv2.imread(path, as_stored) for path in paths)
height = max(len(first), len(second))
drawn = np.zeros((height, first.shape[1] + second.shape[1], 3), np.uint8)
drawn[: len(first), : first.shape[1]] = first
drawn[: len(second), first.shape[1] :] = second
for i, j in matches.index[:200]:
    start = features[0].xy[i] - 0.5
    end = features[1].xy[j] - 0.5 + (first.shape[1], 0)
    start, end = start.round().astype(int).tolist(), end.round().astype(int).tolist()
    cv2.line(drawn, start, end, (60, 220, 60), 1, cv2.LINE_AA)
cv2.imwrite(picture, drawn)
print(f"{len(features[0])} and {len(features[1])} keypoints, {len(matches)} matches")
