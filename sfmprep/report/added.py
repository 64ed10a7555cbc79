"""What became of the poses of a result that photographs joined, in plain words."""

from __future__ import annotations

from sfmprep.report.schema import Added

# From a tenth more on it is said: a choice, not a measure.
_SHARE_THAT_TELLS = 0.1


def moved(added: Added) -> str:
    """What earlier poses were told by new photographs; empty where that is little."""
    of = f"the poses of the {added.num_earlier} earlier photographs"
    if added.is_adjusted:
        sizes = (
            *(added.median_rotation_deg, added.median_share),
            *(added.max_rotation_deg, added.max_share),
        )
        told = [size for size in sizes if size is not None]
        if len(told) < len(sizes):
            return f"{of} moved, and the world with them: they do not tell by how much"
        turned, shifted, most_turned, most_shifted = told
        return (
            f"{of} moved by {turned:.2g}° and {100 * shifted:.2g}% of the cameras'"
            f" extent (median), at most by {most_turned:.2g}° and"
            f" {100 * most_shifted:.2g}%"
        )
    if added.num_added and added.num_added >= _SHARE_THAT_TELLS * added.num_earlier:
        return (
            f"{of} stayed as these told them; `sfmprep add --adjust` moves them to what"
            " all tell, and what was trained with them has to be trained again"
        )
    return ""
