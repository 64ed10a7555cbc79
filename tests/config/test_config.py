"""Recipes: those that are shipped, overrides, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from sfmprep.config import (
    AlikedConfig,
    DenseConfig,
    ExhaustiveConfig,
    Frontend,
    LightGlueConfig,
    LoftrConfig,
    MappingConfig,
    NearestConfig,
    PairsFileConfig,
    Recipe,
    RefinementConfig,
    S2ldConfig,
    SequentialConfig,
    SiftConfig,
    WorldConfig,
    XFeatStarConfig,
)
from sfmprep.config.load import load_recipe, read_resolved, recipe_names
from sfmprep.errors import ConfigError

SIFT = "features: {type: sift}\nmatcher: {type: nearest}\n"
RECIPE_KEYS = (
    "Keys here: name, description, features, matcher, stronger, otherwise, beside,"
    " masks, motion_masks, keep_damaged, film, panorama, rigs, pairs, dense, tracks,"
    " database, known_poses, mapping, second_round, closer, refinement, export, engine,"
    " budget_minutes, seed, like."
)


def error_of(tmp_path: Path, text: str, *overrides: str) -> str:
    """The message for a recipe file of this text, without the file's name."""
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).removeprefix(f"recipe file {path}").removeprefix(": ")


def splat_error(override: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe("splat", [override])
    return str(caught.value)


# -------------------------------------------------------------------------- shipped
def test_the_shipped_recipes_are_these() -> None:
    assert recipe_names() == [
        *("accurate", "colmap", "compact", "fast", "film", "pointmap", "sift"),
        *("splat", "superpoint", "textureless"),
    ]


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_under_its_name(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description


@pytest.mark.parametrize("name", recipe_names())
def test_a_resolved_recipe_reads_back_equal(tmp_path: Path, name: str) -> None:
    recipe = load_recipe(name)
    for one in (recipe, *map(recipe.with_frontend, recipe.frontends)):
        (tmp_path / "recipe.yaml").write_text(one.to_yaml(), "utf-8")
        assert read_resolved(tmp_path / "recipe.yaml") == one
        assert load_recipe(tmp_path / "recipe.yaml") == one


def test_paths_and_umlauts_read_back_equal(tmp_path: Path) -> None:
    recipe = load_recipe(
        "fast",
        ["description=Größe", "pairs.type=file", "pairs.path=ä b/p.txt", "seed=7"],
    )
    assert recipe.pairs == PairsFileConfig(path=Path("ä b/p.txt").resolve())
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), "utf-8")
    assert read_resolved(tmp_path / "recipe.yaml") == recipe


def test_paths_are_absolute_below_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(
        "splat",
        [
            *("masks=m", "pairs={type: file, path: p.txt}", "features.weights=f.pt"),
            "dense={matcher: {type: loftr, weights: /l.ckpt}}",
        ],
    )
    assert recipe.masks == tmp_path / "m"
    assert recipe.pairs == PairsFileConfig(path=tmp_path / "p.txt")
    assert [f.features.weights for f in recipe.frontends] == [tmp_path / "f.pt"] * 2
    assert recipe.dense.matcher.weights == Path("/l.ckpt")


def test_recipes_are_frozen() -> None:
    recipe = load_recipe("splat")
    for part, name in (
        (recipe, "seed"),
        (recipe.features, "max_keypoints"),
        (recipe.otherwise[0].matcher, "ratio"),
    ):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, name, 1)


def test_splat_ends_in_features_that_are_in_the_package() -> None:
    labels = [frontend.label() for frontend in load_recipe("splat").frontends]
    assert labels == ["aliked-n16 + nearest", "compact + nearest"]


def test_a_chosen_recipe_has_one_choice() -> None:
    recipe = load_recipe("splat")
    chosen = recipe.with_frontend(recipe.frontends[1])
    assert chosen.frontends == (recipe.frontends[1],)


# -------------------------------------------------------------------------- messages
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"{SIFT}feature: 1",
            f"unknown key 'feature'. Did you mean 'features'? {RECIPE_KEYS}",
        ),
        (f"{SIFT}zzz: 1", f"unknown key 'zzz'. {RECIPE_KEYS}"),
        (
            "features: {type: sift, max_keypoint: 1}\nmatcher: {type: nearest}",
            "unknown key 'features.max_keypoint'. Did you mean 'max_keypoints'? Keys"
            " here: type, max_keypoints, max_size.",
        ),
        (
            "features: {type: sift}\nmatcher: {type: nearest, rati: 1}",
            "unknown key 'matcher.rati'. Did you mean 'ratio'? Keys here: type, ratio,"
            " min_similarity.",
        ),
        (
            f"{SIFT}pairs: {{type: sequential, windows: 3}}",
            "unknown key 'pairs.windows'. Did you mean 'window'? Keys here: type,"
            " window, quadratic.",
        ),
        (
            f"{SIFT}pairs: {{type: auto, retrieval: {{num_neighbors: 3}}}}",
            "unknown key 'pairs.retrieval.num_neighbors'. Did you mean"
            " 'num_neighbours'? Keys here: type, model, num_neighbours, num_clusters,"
            " min_similarity.",
        ),
        (
            f"{SIFT}database: {{camera: single}}",
            "unknown key 'database.camera'. Did you mean 'cameras'? Keys here:"
            " camera_model, cameras, focal_length, camera_params, refine, max_error_px,"
            " min_num_inliers.",
        ),
        (
            f"{SIFT}mapping: {{typ: none}}",
            "unknown key 'mapping.typ'. Did you mean 'type'? Keys here: type,"
            " part_size, min_num_matches, min_model_size, refine_principal_point.",
        ),
        (
            f"{SIFT}export: {{jpeg: 3}}",
            "unknown key 'export.jpeg'. Keys here: targets, camera, downscales,"
            " max_size, jpeg_quality, tracks, models, world, seed, outliers.",
        ),
        (
            f"{SIFT}otherwise: [{{feature: 1}}]",
            "key 'otherwise.0.features' is missing.\n"
            "key 'otherwise.0.matcher' is missing.\n"
            "unknown key 'otherwise.0.feature'. Did you mean 'features'? Keys here:"
            " features, matcher, stronger.",
        ),
        (
            f"{SIFT}otherwise: [{{features: {{type: sift, sizes: 1}}, matcher:"
            " {type: nearest}}]",
            "unknown key 'otherwise.0.features.sizes'. Did you mean 'max_size'? Keys"
            " here: type, max_keypoints, max_size.",
        ),
        (
            "features: {type: sif}\nmatcher: {type: nearest}",
            "features.type = 'sif' is unknown. Did you mean 'sift'? Types: sift,"
            " aliked, xfeat, disk, superpoint, r2d2, d2net,"
            " compact.",
        ),
        (
            f"{SIFT}pairs: {{window: 3}}",
            "key 'pairs.type' is missing. Types: auto, exhaustive, sequential,"
            " retrieval, spatial, temporal, file.",
        ),
        (
            "features: sift\nmatcher: {type: nearest}",
            "features = 'sift': Input should be a valid dictionary or object to"
            " extract fields from.",
        ),
        ("matcher: {type: nearest}", "key 'features' is missing."),
        (f"{SIFT}seed: -1", "seed = -1: Input should be greater than or equal to 0."),
        (
            f"{SIFT}database: {{focal_length: .nan}}",
            "database.focal_length = nan: Input should be a finite number.",
        ),
        (
            f"{SIFT}mapping: {{type: fast}}",
            "mapping.type = 'fast': Input should be 'incremental', 'global' or 'none'.",
        ),
        (
            "- a",
            " holds list but a recipe is a mapping of keys such as `features:` and"
            " `matcher:`. See `sfmprep recipes splat`.",
        ),
        (
            "",
            " holds NoneType but a recipe is a mapping of keys such as `features:` and"
            " `matcher:`. See `sfmprep recipes splat`.",
        ),
    ],
)
def test_a_wrong_recipe_is_explained(tmp_path: Path, text: str, message: str) -> None:
    assert error_of(tmp_path, text) == message


def test_what_is_not_yaml_is_refused(tmp_path: Path) -> None:
    assert error_of(tmp_path, "a: [\n").startswith(" is not YAML: while parsing")


def test_recipes_that_are_not_there_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert str(caught.value) == (
        f"recipe file {path} cannot be read: No such file or directory. Correct the"
        " path, or name a recipe of `sfmprep recipes`."
    )
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert str(caught.value) == (
        f"recipe file {path} is not UTF-8 text. Save it as such."
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe("splatt")
    assert str(caught.value) == (
        "no recipe is called 'splatt'. Did you mean 'splat'? Recipes: accurate,"
        " colmap, compact, fast, film, pointmap, sift, splat, superpoint, textureless;"
        " or give the path of a .yaml file."
    )


@pytest.mark.parametrize("content", ["a: [", "3", "{name: x}"])
def test_a_damaged_resolved_recipe_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_resolved(path)
    assert str(caught.value).startswith(f"recipe file {path}")


# ------------------------------------------------------------------------- overrides
CHOICES = """\
name: mine
features: {type: aliked, model: aliked-n16}
matcher: {type: lightglue, model: aliked-lightglue}
otherwise:
  - features: {type: aliked, model: aliked-n16}
    matcher: {type: nearest, ratio: 0.9}
  - features: {type: xfeat}
    matcher: {type: lightglue, model: lighterglue}
  - features: {type: sift}
    matcher: {type: nearest, ratio: 0.8}
"""


def test_an_override_applies_to_every_choice_that_has_the_setting(
    tmp_path: Path,
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(CHOICES)
    recipe = load_recipe(mine, ["features.nms_radius=3", "matcher.ratio=0.7"])
    radii = [getattr(f.features, "nms_radius", None) for f in recipe.frontends]
    ratios = [getattr(f.matcher, "ratio", None) for f in recipe.frontends]
    assert radii == [3, 3, None, None]
    assert ratios == [None, 0.7, None, 0.7]


def test_an_override_of_the_type_or_model_keeps_the_choices_that_have_it(
    tmp_path: Path,
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(CHOICES)

    def labels(*overrides: str) -> list[str]:
        return [f.label() for f in load_recipe(mine, overrides).frontends]

    assert labels("features.type=sift") == ["sift + nearest"]
    assert labels("matcher.type=nearest") == [
        "aliked-n16 + nearest",
        "sift + nearest",
    ]
    assert labels("matcher.model=lighterglue") == ["xfeat + lighterglue"]
    assert labels("otherwise=[]") == ["aliked-n16 + aliked-lightglue"]


def test_overrides_that_are_only_together_valid_are_accepted() -> None:
    recipe = load_recipe(
        "sift", ["matcher.type=lightglue", "matcher.model=sift-lightglue"]
    )
    assert recipe.matcher == LightGlueConfig(model="sift-lightglue")


def test_another_type_forgets_the_settings_of_the_one_before() -> None:
    recipe = load_recipe("accurate", ["features.type=sift", "pairs.type=sequential"])
    assert recipe.features == SiftConfig()
    assert recipe.pairs == SequentialConfig()
    assert load_recipe("accurate", ["features.type=aliked"]).features == AlikedConfig(
        model="aliked-n32", max_keypoints=8192, max_size=2400
    )


def test_another_type_of_mapping_keeps_the_other_settings() -> None:
    recipe = load_recipe("sift", ["mapping.min_model_size=5", "mapping.type=global"])
    assert recipe.mapping == MappingConfig(type="global", min_model_size=5)


def test_values_are_yaml_and_nested_keys_have_dots() -> None:
    recipe = load_recipe(
        "sift", ["matcher.ratio=null", "pairs.retrieval.num_neighbours=3"]
    )
    assert recipe.matcher == NearestConfig(ratio=None)
    assert recipe.pairs.model_dump()["retrieval"]["num_neighbours"] == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "features.type=compac",
            "--set 'features.type=compac': the recipe's choices are aliked, compact."
            " Did you mean 'compact'? For another, write a recipe file.",
        ),
        (
            "features.nms_radus=2",
            "--set 'features.nms_radus=2': no features of this recipe has the setting"
            " 'nms_radus'. Did you mean 'nms_radius'?",
        ),
        (
            "matcher=nearest",
            "--set 'matcher=nearest': 'matcher' is a section; set one of its keys, or"
            " write a recipe file.",
        ),
        (
            "otherwise=3",
            "--set 'otherwise=3': `otherwise` can only be set to [].",
        ),
        (
            "features.max_keypoints=x",
            "recipe splat with --set features.max_keypoints=x: features.max_keypoints ="
            " 'x': Input should be a valid integer, unable to parse string as an"
            " integer.",
        ),
        (
            "seeds=1",
            "recipe splat with --set seeds=1: unknown key 'seeds'. Did you mean"
            f" 'seed'? {RECIPE_KEYS}",
        ),
        (
            "name.a=1",
            "--set 'name.a=1': 'name' is a value, not a section",
        ),
        (
            "seed",
            "--set 'seed' is not KEY=VALUE; an example: --set"
            " features.max_keypoints=2048",
        ),
        (
            "a..b=1",
            "--set 'a..b=1' is not KEY=VALUE; an example: --set"
            " features.max_keypoints=2048",
        ),
        ("seed=[", "--set 'seed=[': '[' is not a YAML value"),
        ("like=sift", "--set 'like=sift': `like` can only be set in a recipe file."),
    ],
)
def test_a_wrong_override_is_explained(override: str, message: str) -> None:
    assert splat_error(override) == message


def test_a_wrong_recipe_with_overrides_is_explained_too(tmp_path: Path) -> None:
    text = f"{SIFT}otherwise: [3]"
    assert error_of(tmp_path, text, "features.max_size=9") == (
        "otherwise.0 = 3: Input should be a valid dictionary or instance of Frontend."
    )


def test_another_type_of_dense_matcher_forgets_the_settings_of_the_one_before() -> None:
    recipe = load_recipe(
        "textureless",
        ["dense.matcher.min_similarity=0.5", "dense.matcher.type=loftr"],
    )
    assert recipe.dense == DenseConfig(matcher=LoftrConfig())


# ---------------------------------------------------------------------- taking over
def load(folder: Path, **texts: str) -> Recipe:
    """The first of these recipe files, which lie in one folder."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return load_recipe(folder / f"{next(iter(texts))}.yaml")


def load_error(folder: Path, **texts: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, **texts)
    return str(caught.value).replace(f"{folder}/", "")


def test_a_recipe_like_another_differs_in_what_it_says(tmp_path: Path) -> None:
    splat = load_recipe("splat")
    mine = load(tmp_path, mine="like: splat\nexport: {jpeg_quality: 90}\nseed: 3")
    export = splat.export.model_copy(update={"jpeg_quality": 90})
    changed = {"name": "mine", "description": "", "export": export, "seed": 3}
    assert mine == splat.model_copy(update=changed)
    assert "like:" not in mine.to_yaml()
    (tmp_path / "whole.yaml").write_text(mine.to_yaml())
    assert load_recipe(tmp_path / "whole.yaml") == mine
    assert read_resolved(tmp_path / "whole.yaml") == mine


def test_the_recipe_textureless_is_splat_and_more() -> None:
    splat, textureless = load_recipe("splat"), load_recipe("textureless")
    assert textureless.frontends == splat.frontends
    assert textureless.dense == DenseConfig(matcher=XFeatStarConfig())


def test_recipes_can_be_like_recipes_that_are_like_others(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/b.yaml").write_text(
        "like: ../c.yml\nmapping: {min_model_size: 7}\nseed: 2"
    )
    (tmp_path / "c.yml").write_text("like: sift\nmapping: {type: global}")
    (tmp_path / "mine.yaml").write_text("like: deep/b.yaml\nseed: 1")
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert recipe.features == SiftConfig()
    assert recipe.mapping == MappingConfig(type="global", min_model_size=7)
    assert (recipe.name, recipe.seed) == ("mine", 1)


def test_sections_are_taken_over_by_key_and_anew_with_another_type(
    tmp_path: Path,
) -> None:
    base = (
        f"{SIFT}pairs: {{type: sequential, window: 3}}\n"
        "mapping: {min_num_matches: 9}\nexport: {world: {up: keep}, downscales: [2]}"
    )
    same = load(tmp_path, mine="like: b.yaml\npairs: {quadratic: false}", b=base)
    assert same.pairs == SequentialConfig(window=3, quadratic=False)
    other = load(
        tmp_path,
        mine="like: b.yaml\npairs: {type: exhaustive}\nmapping: {type: none}\n"
        "export: {world: {centre: false}, downscales: []}",
        b=base,
    )
    assert other.pairs == ExhaustiveConfig()
    assert other.mapping == MappingConfig(type="none", min_num_matches=9)
    assert other.export.world == WorldConfig(up="keep", centre=False)
    assert other.export.downscales == ()


def test_a_section_can_be_added_and_taken_away(tmp_path: Path) -> None:
    texts = {"b": "like: splat\nrefinement: {max_move_px: 2}\ndense: null"}
    more = load(tmp_path, mine="like: b.yaml\ndense: {matcher: {type: s2ld}}", **texts)
    assert more.dense == DenseConfig(matcher=S2ldConfig())
    assert more.refinement == RefinementConfig(max_move_px=2, most_images=8)
    assert load(tmp_path, mine="like: b.yaml\nrefinement:", **texts).refinement is None


def test_a_setting_of_features_is_that_of_every_choice_that_has_it(
    tmp_path: Path,
) -> None:
    recipe = load(
        tmp_path,
        mine="like: base.yaml\nfeatures: {max_keypoints: 7, nms_radius: 3}\n"
        "matcher: {ratio: 0.7}",
        base=CHOICES,
    )
    overrides = ["features.max_keypoints=7", "features.nms_radius=3"]
    expected = load_recipe(tmp_path / "base.yaml", [*overrides, "matcher.ratio=0.7"])
    assert recipe.frontends == expected.frontends
    assert [f.features.max_keypoints for f in recipe.frontends] == [7] * 4


def test_whoever_names_a_choice_names_all(tmp_path: Path) -> None:
    other = load(tmp_path, mine="like: splat\nfeatures: {model: aliked-n32}")
    assert other.frontends == (
        Frontend(
            features=AlikedConfig(model="aliked-n32"),
            matcher=NearestConfig(ratio=0.9),
        ),
    )
    two = load(
        tmp_path,
        mine="like: splat\nfeatures: {type: sift}\nmatcher: {type: nearest}\n"
        "otherwise: [{features: {type: xfeat}, matcher: {type: nearest}}]",
    )
    assert [f.label() for f in two.frontends] == ["sift + nearest", "xfeat + nearest"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "like: splatt",
            "recipe file mine.yaml: like = 'splatt': no recipe is called 'splatt'. Did"
            " you mean 'splat'? Recipes: accurate, colmap, compact, fast, film,"
            " pointmap, sift, splat, superpoint, textureless; or give the path of a"
            " .yaml file.",
        ),
        (
            "like: [splat]",
            "recipe file mine.yaml: like = ['splat'] is not the name of a recipe or the"
            " path of a .yaml file.",
        ),
        (
            "like: none.yaml",
            "recipe file none.yaml cannot be read: No such file or directory. Correct"
            " the path, or name a recipe of `sfmprep recipes`.",
        ),
        (
            "like: mine.yaml",
            "these recipes are like each other in a circle: recipe file mine.yaml ->"
            " recipe file mine.yaml. Remove one `like`.",
        ),
        (
            "like: one.yaml",
            "these recipes are like each other in a circle: recipe file one.yaml ->"
            " recipe file two.yaml -> recipe file one.yaml. Remove one `like`.",
        ),
        (
            "like: deep/a.yaml",
            "these recipes are like each other in a circle: recipe file deep/a.yaml ->"
            " recipe file deep/../b.yaml -> recipe file deep/../deep/a.yaml. Remove one"
            " `like`.",
        ),
        (
            "like: bad.yaml\nseed: 1",
            "recipe file bad.yaml: seed = -1: Input should be greater than or equal to"
            " 0.",
        ),
        (
            "like: splat\nfeatures: {max_keypoint: 1}",
            "recipe file mine.yaml: no features of this recipe has the setting"
            " 'max_keypoint'. Did you mean 'max_keypoints'?",
        ),
        (
            "like: sift\nfeatures: {max_keypoint: 1}",
            "recipe file mine.yaml: unknown key 'features.max_keypoint'. Did you mean"
            " 'max_keypoints'? Keys here: type, max_keypoints, max_size.",
        ),
        (
            "like: sift\nfeatures: sift",
            "recipe file mine.yaml: features = 'sift': Input should be a valid"
            " dictionary or object to extract fields from.",
        ),
        (
            f"{SIFT}lik: splat",
            "recipe file mine.yaml: unknown key 'lik'. Did you mean 'like'?"
            f" {RECIPE_KEYS}",
        ),
    ],
)
def test_a_wrong_taking_over_is_explained(
    tmp_path: Path, text: str, message: str
) -> None:
    texts = {
        "one": "like: two.yaml",
        "two": "like: one.yaml",
        "bad": f"{SIFT}seed: -1",
        "deep/a": "like: ../b.yaml",
        "b": "like: deep/a.yaml",
    }
    (tmp_path / "deep").mkdir()
    assert load_error(tmp_path, mine=text, **texts) == message


# ------------------------------------------------------------------ stronger matchers
def test_the_stronger_matcher_is_set_in_every_choice_that_has_one(
    tmp_path: Path,
) -> None:
    splat = load_recipe("splat", ["stronger.per_image=3"])
    assert splat.stronger is not None
    assert splat.stronger.per_image == 3
    mine = load(tmp_path, mine="like: splat\nstronger: {min_num_inliers: 9}")
    assert mine.stronger is not None
    assert mine.stronger.min_num_inliers == 9
    for none in (
        load_recipe("splat", ["stronger=null"]),
        load(tmp_path, mine="like: splat\nstronger: null"),
    ):
        assert [f.stronger for f in none.frontends] == [None, None]
        assert none.otherwise[0].features.type == "compact"
    for part in ("stronger", "closer"):
        with pytest.raises(ConfigError) as caught:
            load_recipe("splat", [f"{part}=null", f"{part}.per_image=3"])
        assert str(caught.value) == (
            f"--set '{part}.per_image=3': `{part}` is null, so it has no settings."
            " Leave out what sets it to null, or name all that it should be in a"
            f" recipe file: `{part}: {{...}}`."
        )


def test_whoever_names_features_names_the_stronger_matcher_too(
    tmp_path: Path,
) -> None:
    other = load(tmp_path, mine="like: splat\nfeatures: {type: sift}")
    assert other.stronger is None
    assert other.beside is None
    named = load(
        tmp_path,
        mine="like: splat\nstronger: {matcher: {type: nearest, ratio: null}}",
    )
    assert named.stronger is not None
    assert named.stronger.matcher == NearestConfig(ratio=None)
    assert named.frontends == named.frontends[:1]


# ------------------------------------------------------------ features beside the first
def test_features_beside_the_first_are_of_the_whole_recipe(tmp_path: Path) -> None:
    splat = load_recipe("splat", ["beside.per_image=3"])
    assert splat.beside is not None
    assert splat.beside.per_image == 3
    assert splat.beside.features == SiftConfig()
    assert load_recipe("splat", ["beside=null"]).beside is None
    assert load(tmp_path, mine="like: splat").beside == load_recipe("splat").beside
    assert load_recipe("sift").beside is None
