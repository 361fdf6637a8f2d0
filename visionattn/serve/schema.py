"""Description of the answers in the OpenAPI document."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Attention", "Error", "Health", "ModelInfo", "Predictions", "body_of"]


class Error(BaseModel):
    """A request that was not answered."""

    error: str = Field(description="what is wrong, in one line")


class Health(BaseModel):
    """State of the server."""

    status: str = Field(description="ok")
    version: str
    waiting: int = Field(description="number of files that are read, waiting or being predicted")
    capacity: int = Field(description="number at which further requests are rejected with status 503")


class ModelInfo(BaseModel):
    """A model of the server."""

    model_config = ConfigDict(extra="allow")
    name: str
    task: str = Field(description="kind of prediction, such as instance or semantic")
    title: str = Field(description="the kind of prediction in words, such as instance segmentation")
    input: str = Field(description="image, frame (a point cloud) or video")
    about: str
    records: str = Field(description="name of the list of records in answers")
    source: str = Field(description="method of visionattn.inference.Predictor that loads it")
    classes: list[str]
    colors: list[list[int] | None] = Field(description="red, green, blue of each class; null for those not drawn")
    options: list[str] = Field(description="options that requests may set")
    score_thr: float | None = Field(description="default score threshold; null for models without one")
    sample: bool = Field(description="GET /samples/NAME returns an image to try it on")
    attention: bool = Field(description="POST /attention supports the model")


class RunLengths(BaseModel):
    """A mask as a COCO compressed RLE."""

    size: list[int] = Field(description="height and width of the image")
    counts: str


class Detection(BaseModel):
    """A COCO result; for point clouds, class, box and score."""

    model_config = ConfigDict(extra="allow")
    category_id: int | None = None
    bbox: list[float] | None = Field(None, description="x, y, width, height in pixels")
    score: float
    segmentation: RunLengths | None = None


class Record(BaseModel):
    """The prediction for one file, as in predictions.json; data URLs take the place of files."""

    model_config = ConfigDict(extra="allow")
    image_id: int = Field(description="position of the file in the request (frame_id for point clouds)")
    file: str
    error: str | None = Field(None, description="why this file was not predicted; the other fields are then missing")
    width: int | None = None
    height: int | None = None
    seconds: float | None = Field(None, description="inference time")
    detections: list[Detection] | None = None
    map: str | None = Field(None, description="PNG image with the class index of each pixel")
    heatmap: str | None = Field(None, description="PNG image with 16-bit gray values; 65535 is 1")
    mask: str | None = Field(None, description="PNG image with 255 inside the mask")
    panoptic: str | None = Field(None, description="PNG image in the format of COCO panoptic")
    overlay: str | None = Field(None, description="PNG image of the prediction drawn on the input")
    preview: str | None = Field(None, description="JPEG image of the input as it was read")
    view: str | None = Field(None, description="address of a page with a 3-D view")
    lines: list[str] | None = Field(None, description="the prediction in words")


class Predictions(BaseModel):
    """Predictions for the files of a request, in their order."""

    model_config = ConfigDict(extra="allow")
    visionattn: str = Field(description="version of the server")
    model: dict[str, Any]
    settings: dict[str, Any]
    images: list[Record] = Field(description="the records; models of point clouds name the list frames")


class AttentionLayer(BaseModel):
    """Attention weights of the query in one layer."""

    index: int
    name: str
    grid: list[int] = Field(description="rows and columns of the feature map")
    query: list[int] = Field(description="row and column of the query")
    maxima: list[float] = Field(description="largest weight of each head")
    maps: list[str] = Field(description="one PNG image per head, 255 where the weight is largest")


class Attention(BaseModel):
    """Attention weights of one query of the backbone."""

    width: int
    height: int
    x: float
    y: float
    layers: list[AttentionLayer]


def body_of(fields: type[BaseModel], several: bool) -> dict[str, Any]:
    """Return the description of a request with files: a form, or JSON."""
    schema = fields.model_json_schema()
    options, required = schema["properties"], schema.get("required", [])
    file = {"type": "string", "format": "binary"}
    entry = {
        "type": "object",
        "required": ["data"],
        "properties": {"name": {"type": "string"}, "data": {"type": "string", "format": "byte"}},
    }
    form = {"files": {"type": "array", "items": file} if several else file}
    described = {
        "multipart/form-data": {"type": "object", "required": ["files", *required], "properties": form | options},
        "application/json": {
            "type": "object",
            "required": ["images", *required],
            "properties": {"images": {"type": "array", "items": entry}} | options,
        },
    }
    return {"required": True, "content": {kind: {"schema": schema} for kind, schema in described.items()}}
