"""Which devices networks run on."""

from __future__ import annotations

from sfmprep.errors import ConfigError


def pick_device(device: str) -> str:
    """The device or devices to use.

    Raises:
        ConfigError: torch does not have one of them.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    several = "," in device
    for each in device.split(","):
        try:
            # a process that holds no GPU itself leaves it to its workers
            if several and torch.device(each).type == "cuda":
                if (torch.device(each).index or 0) >= torch.cuda.device_count():
                    raise RuntimeError(f"it sees {torch.cuda.device_count()} of them")
            else:
                torch.zeros(1, device=each).cpu()
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"--device {each}: torch cannot use it ({reason}). See `sfmprep"
                " doctor`."
            ) from error
    return device
