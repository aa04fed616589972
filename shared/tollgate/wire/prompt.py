"""How large a prompt is, before it is sent: text in bytes, media as flat estimates, token arrays exactly.

One walk over the parsed value, without recursion, also finds whether it refers to something that is stored at the
provider (a file, an earlier answer's audio): the provider's key is shared, so such ids could be another tenant's.
"""

from __future__ import annotations

from typing import Any

from tollgate.domain.dataclass import dataclass
from tollgate.wire.errors import invalid_request

IMAGE_TOKENS = 1_000
"""What one image is taken to cost unless the policy says otherwise; settling corrects it."""

MAX_PARTS = 100_000
"""Elements of all arrays in a prompt, token ids apart: more take long to walk over, and no provider takes them."""

# Base64 bytes per token. Speech: 10 tokens a second, at 4 kB/s of MP3 (WAV is larger, so it is overestimated).
# Documents: about 1,500 tokens for a page of 60 kB.
_AUDIO_BYTES = 530
_FILE_BYTES = 40

_MEDIA = {
    "image_url": "image",
    "input_image": "image",
    "image": "image",
    "computer_screenshot": "image",
    "input_audio": "audio",
    "file": "file",
    "input_file": "file",
    "document": "file",
}
_PAYLOADS = ("url", "image_url", "data", "file_data")
_SCALAR_BYTES = 4


@dataclass(slots=True)
class Prompt:
    """The size of a prompt, and the first reference to something stored at the provider."""

    text_bytes: int = 0
    """UTF-8 bytes of all text, names of members included: they come close to what each message costs extra."""
    tokens: int = 0
    """Tokens that need no guess about text: token arrays, and flat estimates for media."""
    count: int = 1
    """How many prompts there are; each gets answers of its own."""
    reference: str | None = None
    media: bool = False
    """Whether there is an image, a sound or a file."""
    parts: int = 0
    """Elements of arrays seen so far."""

    def add(self, value: Any, image_tokens: int = IMAGE_TOKENS, *, content: bool = True) -> None:
        """Count `value`. Media and references are looked for in `content` only, not in tools' schemas, which may well
        have a property called `file_id`."""
        size = 0
        stack = [value]
        plain: list[Any] = []
        pop, push = stack.pop, stack.append
        while stack:
            item = pop()
            kind = type(item)
            if kind is str:
                size += _bytes(item)
            elif kind is dict:
                if content:
                    if item.get("type") == "tool_use":  # its arguments are the tool's own, whatever they are called
                        plain.append(item)
                        continue
                    size -= self._part(item, image_tokens)
                for name, member in item.items():
                    size += len(name)
                    if type(member) is str:
                        size += len(member) if member.isascii() else _bytes(member)
                    else:
                        push(member)
            elif kind is list:
                self.parts += len(item)
                if self.parts > MAX_PARTS:
                    raise invalid_request(f"The prompt has more than {MAX_PARTS} parts.", code="array_above_max_length")
                stack += item
            elif item is not None:
                size += _SCALAR_BYTES
        self.text_bytes += size
        if plain:
            self.add(plain, content=False)

    def _part(self, part: dict[str, Any], image_tokens: int) -> int:
        """Look at one object of the content; returns how many bytes of it are media rather than text."""
        kind = part.get("type")
        if self.reference is None:
            if type(part.get("file_id")) is str:
                self.reference = "file_id"
            elif "audio" in part and _is_stored(part["audio"]):
                self.reference = "audio.id"
            elif kind == "item_reference":
                self.reference = "item_reference"
        media = _MEDIA.get(kind) if type(kind) is str else None
        if media is None:
            return 0
        self.media = True
        size = len(_payload(part))
        if media == "image":
            self.tokens += image_tokens
        elif size:
            self.tokens += max(image_tokens, -(-size // (_AUDIO_BYTES if media == "audio" else _FILE_BYTES)))
        return size

    def add_texts_or_tokens(self, value: Any) -> None:
        """Count a completion's prompt or an embedding's input: a text, texts, token ids, or lists of those."""
        if type(value) is not list:
            self.add(value, content=False)
            return
        if are_integers(value):
            self.tokens += len(value)
            return
        self.count = max(1, len(value))
        for item in value:
            if type(item) is list and are_integers(item):
                self.tokens += len(item)
            else:
                self.add(item, content=False)


class ConversePrompt(Prompt):
    """The same for Bedrock's Converse, where a member's name says what a part is."""

    def _part(self, part: dict[str, Any], image_tokens: int) -> int:
        if "s3Location" in part and self.reference is None:
            self.reference = "s3Location"
        source = part.get("source")
        data = source.get("bytes") if type(source) is dict and "format" in part else None
        if type(data) is not str or not data.isascii():
            return 0
        self.media = True
        per_token = _AUDIO_BYTES if part["format"] in _SOUNDS else _FILE_BYTES
        self.tokens += image_tokens if part["format"] in _IMAGES else max(image_tokens, -(-len(data) // per_token))
        return len(data)


_IMAGES = ("png", "jpeg", "gif", "webp")
_SOUNDS = ("mp3", "opus", "wav", "aac", "flac", "ogg", "m4a", "mpeg", "mpga", "pcm", "webm")


def are_integers(items: list[Any]) -> bool:
    """Whether these are token ids, at least one. (True and False are not.)"""
    return set(map(type, items)) == {int}


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _payload(part: dict[str, Any]) -> str:
    """The base64 text of a media part: in itself, or one level down (`image_url.url`, `source.data`, ...)."""
    for holder in (part, *part.values()):
        if type(holder) is not dict or holder.get("type") == "text":
            continue
        for name in _PAYLOADS:
            value = holder.get(name)
            if type(value) is str and value.isascii() and (name.endswith("data") or value.startswith("data:")):
                return value
    return ""


def _is_stored(audio: Any) -> bool:
    """Whether an assistant message's `audio` names an earlier answer."""
    return type(audio) is dict and type(audio.get("id")) is str
