"""What became of the poses of a result that photographs joined, in plain words."""

from __future__ import annotations

from sfmprep.report.schema import Added

# Errors fall as the root of the number of photographs: a tenth more, and they are a
# twentieth smaller if all are adjusted.
_SHARE_THAT_TELLS = 0.1


def moved(added: Added) -> str:
    """What earlier poses were told by new photographs; empty where that is little."""
    of = f"the poses of the {added.num_earlier} earlier photographs"
    if added.is_adjusted:
        return (
            f"{of} moved by {added.median_rotation_deg:.2g}° and"
            f" {100 * added.median_share:.2g}% of the cameras' extent (median), at most"
            f" by {added.max_rotation_deg:.2g}° and {100 * added.max_share:.2g}%"
        )
    if added.num_added and added.num_added >= _SHARE_THAT_TELLS * added.num_earlier:
        return (
            f"{of} stayed as these told them; `sfmprep add --adjust` moves them to what"
            " all tell"
        )
    return ""
