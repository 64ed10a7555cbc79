"""Tensors in files of weights, and what is said of files that hold none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sfmprep.errors import WeightsError
from sfmprep.weights import ResolvedWeights, load_metadata, load_strict, load_tensors


def resolved(path: Path, name: str = "xfeat") -> ResolvedWeights:
    return ResolvedWeights(name=name, path=path, sha256="")


def test_tensors_of_either_format_are_read_with_dotted_keys(tmp_path: Path) -> None:
    ones, twos = torch.ones(2), torch.full((3, 1), 2.0)
    save_file({"a": ones, "b.c": twos}, tmp_path / "w.safetensors")
    torch.save({"a": ones, "b": {"c": twos}, "epoch": 3}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        found = load_tensors(resolved(tmp_path / name))
        assert found.keys() == {"a", "b.c"}
        assert torch.equal(found["a"], ones)
        assert torch.equal(found["b.c"], twos)


class Unsafe:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("content", [b"", b"garbage", bytes(100), b"PK\3\4" * 9])
def test_what_holds_no_tensors_is_an_error(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        load_tensors(resolved(path))
    assert str(caught.value).startswith(f"weights of xfeat: {path} cannot be read (")


def test_metadata_are_those_of_safetensors_alone(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"x": torch.ones(1)}, path, {"head": "sinkhorn"})
    assert load_metadata(resolved(path)) == {"head": "sinkhorn"}
    save_file({"x": torch.ones(1)}, path)
    assert load_metadata(resolved(path)) == {}
    assert load_metadata(resolved(tmp_path / "w.pth")) == {}
    path.write_bytes(b"garbage")
    with pytest.raises(WeightsError) as caught:
        load_metadata(resolved(path))
    assert str(caught.value).startswith(f"weights of xfeat: {path} cannot be read (")


def test_a_checkpoint_without_names_is_an_error(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        load_tensors(resolved(tmp_path / "w.pth"))
    assert str(caught.value) == (
        f"weights of xfeat: {tmp_path / 'w.pth'} cannot be read (it holds a list, not"
        " named tensors). Expected safetensors or a torch checkpoint; put a good copy"
        " in its place."
    )


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"a": Unsafe(tmp_path / "proof")}, tmp_path / "w.pth")
    with pytest.raises(WeightsError):
        load_tensors(resolved(tmp_path / "w.pth"))
    assert not (tmp_path / "proof").exists()


def test_tensors_that_do_not_fit_the_network_are_an_error(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 1)
    fitting = {"weight": torch.ones(1, 2), "bias": torch.ones(1)}
    load_strict(network, fitting, resolved(tmp_path))
    assert network.bias.item() == 1
    for wrong in (
        {"weight": torch.ones(1, 2)},
        {**fitting, "more": torch.ones(1)},
        {**fitting, "bias": torch.ones(2)},
    ):
        with pytest.raises(WeightsError, match="does not fit the network"):
            load_strict(network, wrong, resolved(tmp_path))


def test_message_about_many_tensors_that_do_not_fit_is_short(tmp_path: Path) -> None:
    network = torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(200)))
    with pytest.raises(WeightsError, match=r"Missing key.*0\.weight") as caught:
        load_strict(network, {}, resolved(tmp_path))
    assert len(str(caught.value)) < 600 + len(str(tmp_path))
