"""The content of report.json: stable, versioned, every field documented.

Pixels are those of the files on disk, angles degrees, lengths world units: metres only
where `world` says so. What could not be found is null or empty, never a made-up zero.
A field is never renamed or given another meaning without a new `schema_version`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Status = Literal[
    "registered",
    "outlier",
    "unreadable",
    "too_few_features",
    "no_match",
    "not_connected",
    "not_registered",
    "not_mapped",
]
Grade = Literal["good", "usable", "poor", "failed"]

SCHEMA_VERSION: Literal[1] = 1


class Record(BaseModel):
    """Frozen; its attribute docstrings are the descriptions in its JSON schema.

    `model_validate` also takes an object that has attributes of these names.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", from_attributes=True, use_attribute_docstrings=True
    )


class SizeCount(Record):
    """How many images have one size."""

    width: int
    """Pixels of the files on disk, before any EXIF orientation."""
    height: int
    """Pixels of the files on disk, before any EXIF orientation."""
    num_images: int
    """Readable images of this size."""


class FilmReport(Record):
    """A film, of which frames are among the images."""

    name: str
    """POSIX path relative to the folder of photographs."""
    seconds: float
    """As far as it can be decoded."""
    num_frames: int
    """Frames that could be decoded."""
    num_blurred: int
    """Frames, of those that were looked at, that are blurred against those around."""
    num_blurred_used: int
    """How many of these are used all the same."""
    num_thinned: int = 0
    """Frames that show enough that is new, but are more than `film.frames` allows."""
    num_cuts: int
    """Cuts between frames that are used."""
    times: list[float]
    """When the frames that are used are, seconds from the start."""
    curve: list[tuple[float, float]]
    """Seconds, and sharpness against the median of the film; at most 400 points."""
    subtitles: str | None = None
    """The file beside it that tells where a drone was."""
    num_located: int = 0
    """Frames that are used and have a position by it."""


class Capture(Record):
    """The photographs that went in."""

    folder: str
    """The folder of photographs: its name behind that of the folder it lies in."""
    num_images: int
    """All images, also those that cannot be read."""
    num_bytes: int
    """Size of all readable image files."""
    sizes: list[SizeCount]
    """Sizes, most frequent first."""
    devices: list[str]
    """Makes and models of the cameras that EXIF names, sorted."""
    films: list[FilmReport] = []
    """Films, of which frames are used, sorted by name."""
    copies: dict[str, str] = {}
    """Files left out since another has their content: its name. They are no images."""


class Result(Record):
    """The largest model."""

    num_registered: int
    """Images with a pose in the largest model, outliers included."""
    num_dataset: int
    """Images with a pose that went into the dataset."""
    num_points: int
    """3D points of the model."""
    num_dataset_points: int | None = None
    """3D points of the dataset, which training starts from; null where there is none:
    points that are not well supported are not among them, further ones may be."""
    num_observations: int
    """Keypoints that see a 3D point."""
    mean_track_length: float
    """Images that see a point, on average."""
    median_angle_deg: float
    """Median over the points of the largest angle between two of their rays."""
    median_parallax_deg: float | None = None
    """Median over the images of what the best turn of the camera leaves between their
    rays and those of the partner where it is most; null where no two share enough."""
    model_sizes: list[int]
    """Registered images of every model, largest first."""


class OtherModel(Record):
    """A model beside the largest, in a frame of its own."""

    number: int
    """Its number in `work/models`."""
    num_images: int
    """Images with a pose in it."""
    num_points: int
    """Its 3D points."""
    folder: str | None
    """Its dataset, a folder below that of the report; null where it has none."""
    reason: str
    """Why it has none; empty where it has."""
    num_links: int = 0
    """Verified pairs of an image of it and one of the largest model."""
    strongest_link: ViewPair | None = None
    """The one of these with the most inliers; null without any."""


class ImageReport(Record):
    """What became of one image."""

    name: str
    """POSIX path relative to the folder of photographs."""
    status: Status
    """`registered`: has a pose and is in the dataset. `outlier`: has a pose that is not
    supported, so it is left out. `unreadable`: could not be decoded.
    `too_few_features`: blurred, dark or blank. `no_match`: verified with no other
    image. `not_connected`: verified with others, but none that has a pose in the
    largest model. `not_registered`: verified with images that have a pose, but got
    none. `not_mapped`: no mapping was asked for."""
    reason: str
    """A sentence with numbers; empty for `registered`."""
    num_keypoints: int | None = None
    """Keypoints that were found; null where they are not known."""
    num_pairs: int = 0
    """Other images that it is verified with."""
    num_inliers: int = 0
    """Verified matches over all of these pairs."""
    best_partner: str | None = None
    """The image with which it shares most verified matches."""
    best_inliers: int = 0
    """Verified matches shared with `best_partner`."""
    model: int | None = None
    """Number of the model that it is in, 0 the largest; null for none."""
    camera_id: int | None = None
    """Its camera in the largest model."""
    num_points: int = 0
    """3D points of the largest model that it sees."""
    mean_error_px: float | None = None
    """Mean reprojection error of these."""
    coverage: float | None = None
    """Share, 0..1, of the cells of a 10 x 10 grid over it that hold such a point."""
    sharpness: float | None = None
    """Contrast of its finest details against that of the sharper of the photographs of
    its camera that show the same surfaces from about as far: 1 for as sharp, 0.5 for
    half. Null where too few do, and outside the largest model."""
    rotation_stddev_deg: float | None = None
    """Standard deviation of its rotation, from the bundle adjustment's covariance."""
    position_stddev: float | None = None
    """Standard deviation of its position, from the bundle adjustment's covariance."""


class ResidualField(Record):
    """Mean residuals over the image plane of a camera, on a regular grid."""

    num_columns: int
    """Cells from left to right."""
    num_rows: int
    """Cells from top to bottom."""
    mean_px: list[tuple[float, float]]
    """Mean of observed minus projected, (x, y), for each cell row by row."""
    num_observations: list[int]
    """Observations in each cell, row by row."""
    leftover_px: float
    """Root mean square of the cells' means less what chance explains, by number of
    observations: distortion that the camera model does not describe."""


class CameraReport(Record):
    """One camera of the largest model."""

    camera_id: int
    """Its id in the COLMAP model."""
    model: str
    """COLMAP's camera model."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    parameters: dict[str, float]
    """Intrinsics by COLMAP's names."""
    num_images: int
    """Images with a pose that it took."""
    focal_length_px: float
    """Mean focal length, pixels."""
    field_of_view_deg: float
    """Of the longer side, were it free of distortion, degrees."""
    principal_point_offset_px: tuple[float, float]
    """Principal point less the middle of the image, pixels."""
    residuals: ResidualField
    """What is left over across its image plane."""


class ViewPair(Record):
    """Two images that are verified with each other."""

    name0: str
    """First image."""
    name1: str
    """Second image."""
    num_inliers: int
    """Verified matches."""


class ViewGraph(Record):
    """Which images match which."""

    num_matched_pairs: int
    """Pairs with eight or more matches before geometric verification."""
    num_pairs: int
    """Verified pairs."""
    num_rotation_only: int
    """Verified pairs that show no parallax."""
    edges: list[tuple[int, int, int]]
    """Rows of `images` of the pair, and its verified matches."""
    max_edges_per_image: int | None
    """Only edges among so many strongest of one of their images are listed; null where
    all are, which is so up to 20,000 pairs."""
    part_sizes: list[int]
    """Numbers of images of the parts that no verified pair connects, largest first;
    images without a pair do not count."""


class WeakLink(Record):
    """A thin cut: two sets of images that few matches hold together.

    Cuts are those that removing one edge of the maximum spanning tree makes, among the
    images of the largest model (where there is none, of the largest connected part).
    """

    pair: ViewPair
    """The strongest pair across the cut."""
    num_pairs: int
    """Verified pairs across the cut; 1 is a bridge."""
    num_matches: int
    """Verified matches across the cut."""
    num_images: int
    """Images of the smaller side."""
    images: list[str]
    """Images of the smaller side, the first ten."""


class Contradiction(Record):
    """A pair whose matches agree with each other but not with the poses."""

    pair: ViewPair
    """The pair."""
    share_fitting: float
    """Share, 0..1, of its verified matches within 8 px of the model's epipolar line."""


class LookAlike(Record):
    """A pair of images that match, but show two places that look alike."""

    pair: ViewPair
    """The pair."""
    absent: float | None
    """Share, 0..1, of the points that both should see in each other, or of the image of
    photographs from one place, in which nothing is found there; null where too few are
    expected."""
    certainty: float
    """0..1: how far the pairs between these two groups of images agree that they do
    not show the same place."""
    loop_deg: float | None
    """Degrees that a loop by this pair and others between the two, such as those of the
    photographs in a row, leaves over; null where no loop was asked."""


class Consistency(Record):
    """How far the verified pairs and the largest model agree."""

    consistency: float
    """Share, 0..1, of the pairs asked that neither contradict the poses nor lay one
    place on another."""
    num_asked: int
    """Verified pairs between its images, the twenty strongest of each at least; without
    those left out."""
    num_contradicted: int
    """Of these, pairs of 30 verified matches or more of which fewer than 30 % fit."""
    num_overlaid: int
    """Of these, pairs that agree with the poses and lay one place on another."""
    overlaid: list[LookAlike]
    """The strongest of these, at most 100."""
    num_left_out: int
    """Pairs that would have laid one place on another, and were not mapped with."""
    left_out: list[LookAlike]
    """The strongest of these, at most 100."""
    broken: list[ViewPair]
    """Photographs taken one after the other that match well and whose poses say that
    they cannot; at most 100."""


class GivenPoses(Record):
    """Poses that were given, against those of the result, in its frame and scale."""

    source: str
    """What their file is."""
    convention: str
    """How they were read."""
    time_offset_s: float | None
    """Seconds added to the times of images, for a trajectory; else null."""
    num_given: int
    """Poses of images of the capture."""
    rotation_stddev_deg: float
    """Of the given rotations, in each axis, without those contradicted, degrees."""
    position_stddev: float
    """Of the given positions, in each axis, in their units."""
    median_rotation_deg: float
    """By how much rotations changed."""
    max_rotation_deg: float
    """The largest of these."""
    median_distance: float
    """By how much positions changed, in units of the given."""
    max_distance: float
    """The largest of these."""
    contradicted: list[str]
    """Images whose given pose is off by far more than most, and was replaced."""
    added: list[str]
    """Images with a pose that had none."""
    lost: list[str]
    """Images that had a pose, which nothing supports: they have none now."""


class Added(Record):
    """Photographs that joined a finished result."""

    num_earlier: int
    """Images that had a pose in the largest model before."""
    num_added: int
    """Images that have one now and had none."""
    is_adjusted: bool
    """Whether earlier poses and cameras were adjusted with them; else they stayed."""
    median_rotation_deg: float | None
    """By how much earlier rotations changed; 0 where they stayed. Null, as the three
    below, where earlier poses are too few, or on one spot, to tell it."""
    max_rotation_deg: float | None
    """The largest of these."""
    median_share: float | None
    """By how much earlier positions changed, as a share of the distance of the farthest
    camera from their middle; 0 where they stayed."""
    max_share: float | None
    """The largest of these."""


class Histogram(Record):
    """Counts between edges."""

    edges: list[float]
    """Boundaries of the bins, one more than `counts`."""
    counts: list[int]
    """Items in each bin; the last bin holds all that is larger, too."""


class Residuals(Record):
    """Reprojection errors of all observations of the largest model, pixels."""

    mean_px: float
    """Mean."""
    median_px: float
    """Median."""
    p90_px: float
    """90 % are smaller."""
    p99_px: float
    """99 % are smaller."""
    histogram: Histogram
    """Edges in pixels."""


class Finding(Record):
    """Something that a person should look at."""

    code: str
    """Stable name such as `thin_cut`."""
    text: str
    """What was found, in plain words, with numbers."""
    advice: str
    """What to do about it."""
    blocks_training: bool = False
    """Whether it makes training on this result pointless."""
    images: list[str] = []
    """Images that it is about, at most ten; may be empty."""


class PairWay(Record):
    """What one way of choosing pairs proposed, beside others."""

    way: str
    """Such as `retrieval`, `temporal` or `spatial`: as recipes call it."""
    num_proposed: int
    """Pairs that it proposed, in the last run that chose some."""
    num_kept: int
    """Of these, the pairs that `pairs.per_image` left, whoever else proposed them."""


class Rung(Record):
    """What one matcher of the ladder tried, and what it gained."""

    name: str
    """The matcher, such as `nearest`; or `second round`."""
    num_pairs: int
    """Pairs that it tried."""
    num_verified_before: int
    """Of these, the pairs that were verified already."""
    num_verified: int
    """Of these, the pairs that are verified with what it found."""
    num_left_out: int = 0
    """Pairs that the budget had no time for."""
    seconds: float | None = None
    """What it took, verification before it included; null where this is not known."""


class Report(Record):
    """Everything that a run found."""

    schema_version: Literal[1] = SCHEMA_VERSION
    """Of this format."""
    sfmprep_version: str
    """The version that wrote it."""
    recipe: str
    """Name of the recipe."""
    frontend: str
    """Features and matcher that were used."""
    mapper: str
    """What found the poses: a mapper, and whether in parts; or given poses."""
    grade: Grade
    """`good`: all images and no warning. `usable`: 80 % of them or more. `poor`: fewer,
    or not worth training on. `failed`: no poses, or no dataset."""
    verdict: str
    """The result in a sentence."""
    trainable: bool
    """Whether a trainer should be given the dataset: there is one, and no warning
    blocks training."""
    next_steps: list[str]
    """Commands that open the dataset, one a line, with absolute paths; empty where it
    is not worth training on."""
    command: str
    """The command that makes this result, with absolute paths."""
    pair_ways: list[PairWay] = []
    """The ways that chose pairs before matching, in the last run that chose some: after
    `sfmprep add`, those with a new photograph. A pair may be of several. Empty where
    pairs were changed by hand since."""
    rungs: list[Rung] = []
    """The matchers in the order in which they were used."""
    settings: dict[str, Any]
    """The recipe as it was run."""
    versions: dict[str, str]
    """Versions of what computed it, by name."""
    failure: str | None
    """Why there is no model or no dataset; null where there is one."""
    capture: Capture
    """What went in."""
    result: Result | None
    """The largest model; null where there is none."""
    other_models: list[OtherModel] = []
    """The models beside the largest, largest first."""
    warnings: list[Finding]
    """Most important first."""
    images: list[ImageReport]
    """Every image, sorted by name."""
    cameras: list[CameraReport]
    """Cameras of the largest model that took an image with a pose."""
    view_graph: ViewGraph | None
    """Null where there was no database to read."""
    weak_links: list[WeakLink]
    """Thinnest first, at most 20."""
    contradictions: list[Contradiction]
    """Strongest pairs first, at most 20."""
    consistency: Consistency | None = None
    """Null where there is no model."""
    given_poses: GivenPoses | None = None
    """Null where no poses were given, there is no model, or poses were adjusted
    since."""
    added: Added | None = None
    """Null where `sfmprep add` was not the last command that made something."""
    residuals: Residuals | None
    """Null where there is no model."""
    track_lengths: Histogram | None
    """Points by the number of images that see them."""
    angles_deg: Histogram | None
    """Points by the largest angle between two of their rays, degrees; of 20,000 points
    at most."""
    world: dict[str, Any] | None
    """The content of world_from_sfm.json: how the world frame was chosen."""
    seconds: dict[str, float]
    """Wall-clock time of each stage in the last whole run; empty before one."""

    def to_json(self) -> str:
        """This report as text; `Report.model_validate_json` reads it back."""
        return self.model_dump_json(indent=1)
