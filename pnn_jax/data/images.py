"""From image files to pixels, resized and padded.

PNG, JPEG and WebP are told apart by content, whatever the name says. Grey, palette, CMYK and transparent images are
converted as PIL converts them (transparency is dropped, not blended). 16-bit samples keep their high byte. Orientation
tags are ignored, as torchvision ignores them. Refused with one line: animations, more than MAX_PIXELS pixels, anything
damaged or of another format.
"""

import io
import math
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from pnn_jax.errors import InputError, one_line

MAX_PIXELS = 2**26  # 67 million: far above any photograph in a training set, far below what exhausts memory
MODES = {1: 'L', 3: 'RGB'}  # channels -> PIL mode
NUM_THREADS = max(2, os.cpu_count() or 2)  # PIL decodes and resizes without holding Python's lock

# PIL raises from here on where it would otherwise only warn, so that decode_image can name the file.
warnings.filterwarnings('error', category=Image.DecompressionBombWarning)

Box = tuple[int, int, int, int]  # left, top, right, bottom
Crop = Callable[..., Box]  # (width, height) of an image -> the part of it that becomes the square


def centre_square(width: int, height: int, fraction: float = 1.0) -> Box:
    """The centred square whose side is `fraction` of the shorter side."""
    side = max(1, round(fraction * min(width, height)))
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def centre_part(width: int, height: int, fraction: float = 1.0) -> Box:
    """The centred part that has `fraction` of the width and of the height; resizing to a square stretches it."""
    w, h = max(1, round(fraction * width)), max(1, round(fraction * height))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


# config.data.resize -> function(width, height, fraction=1.0) -> the part of an image that becomes the square.
RESIZES: dict[str, Crop] = {'crop': centre_square, 'stretch': centre_part}


def decode_image(
    content: bytes, name: str, channels: int, image_size: int = 0, crop: Crop = centre_square
) -> np.ndarray:
    """Pixels of an image file.

    Args:
        content: of the file.
        name: of the file, for errors.
        channels: 1 (grey) or 3 (RGB).
        image_size: of the result; 0 keeps all of the image as it is stored.
        crop: chooses the box that is resized (bilinear) to image_size x image_size.

    Returns:
        uint8 [h, w, channels].

    Raises:
        InputError: the file is damaged, or not a single PNG, JPEG or WebP image of reasonable size.
    """
    try:
        with Image.open(io.BytesIO(content), formats=('PNG', 'JPEG', 'WEBP')) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f'{image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are accepted')
            # A JPEG can hold several photographs (a preview, the other eye); the first one is meant.
            if image.format in ('PNG', 'WEBP') and getattr(image, 'is_animated', False):
                raise ValueError('an animation')
            if image_size:
                pixels = _resized(image, MODES[channels], image_size, crop(*image.size))
            else:
                pixels = _converted(image, MODES[channels])
            return np.array(pixels).reshape(pixels.height, pixels.width, channels)
    except Exception as error:  # noqa: BLE001  (PIL raises a dozen kinds for damaged files)
        reason = 'not PNG, JPEG or WebP' if isinstance(error, Image.UnidentifiedImageError) else one_line(error)
        raise InputError(f'{name}: not a usable image ({reason})') from None


def _resized(image: Image.Image, mode: str, image_size: int, box: Box) -> Image.Image:
    left, top, right, bottom = box
    width, height = image.size
    needed = image_size / min(right - left, bottom - top)
    # A JPEG decodes at 1/2, 1/4 or 1/8 of its size where that still leaves image_size pixels across the box.
    drafted = image.draft(None, (math.ceil(width * needed), math.ceil(height * needed)))
    scale = drafted[1][2] / width if drafted else 1
    scaled = (scale * left, scale * top, scale * right, scale * bottom)
    return _converted(image, mode).resize((image_size, image_size), Image.Resampling.BILINEAR, box=scaled)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith('I'):  # 16-bit grey, which PIL would clip instead of scale
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert(mode)
    return image.convert(mode)


def decode_all(count: int, decode: Callable[[int], np.ndarray], name: Callable[[int], str]) -> np.ndarray:
    """Decodes images 0..count-1 in threads; all must have the size of the first.

    Args:
        decode: number of an image -> uint8 [h, w, c].
        name: number of an image -> its name, for errors.

    Returns:
        uint8 [count, h, w, c].

    Raises:
        InputError: an image is damaged, sizes differ, or the set does not fit in memory.
    """
    first = decode(0)
    check_images_fit(count * first.size)
    images = np.empty((count, *first.shape), np.uint8)

    def fill(start: int) -> None:
        for i in range(start, min(start + 256, count)):
            pixels = decode(i)
            if pixels.shape != first.shape:
                raise InputError(
                    f'{name(0)} is {first.shape[1]}x{first.shape[0]} and {name(i)} is '
                    f'{pixels.shape[1]}x{pixels.shape[0]} pixels; set config.data.image_size to resize all of them'
                )
            images[i] = pixels

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        try:
            list(pool.map(fill, range(0, count, 256)))
        finally:
            pool.shutdown(cancel_futures=True)
    return images


def resized_images(images: np.ndarray, image_size: int, crop: Crop = centre_square) -> np.ndarray:
    """Images uint8 [n, h, w, c] as [n, image_size, image_size, c]: the part that `crop` chooses, resized (bilinear)."""
    check_images_fit(len(images) * image_size**2 * images.shape[-1])
    result = np.empty((len(images), image_size, image_size, images.shape[-1]), np.uint8)
    for source, target in zip(images, result, strict=True):
        image = Image.fromarray(source.squeeze(-1) if source.shape[-1] == 1 else source)
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR, box=crop(*image.size))
        target[:] = np.asarray(image).reshape(target.shape)
    return result


def padded(images: np.ndarray, pad: int) -> np.ndarray:
    """Images uint8 [..., h, w, c] in the centre of black squares, [..., pad, pad, c]; unchanged where `pad` is 0.

    Where the number of added rows or columns is odd, the extra one is at the bottom or on the right.

    Raises:
        InputError: the images are larger than `pad`.
    """
    if not pad:
        return images
    *batch, h, w, c = images.shape
    if max(h, w) > pad:
        raise InputError(f'config.data.pad={pad}: the images are {w}x{h} pixels; must be at least {max(h, w)}, or 0')
    check_images_fit(math.prod(batch) * pad * pad * c)
    result = np.zeros((*batch, pad, pad, c), np.uint8)
    top, left = (pad - h) // 2, (pad - w) // 2
    result[..., top : top + h, left : left + w, :] = images
    return result


def check_images_fit(num_bytes: int) -> None:
    """Raises InputError for a set so large that this machine should stream it."""
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    if num_bytes > memory // 2:
        raise InputError(
            f'config.data: the images take {num_bytes / 2**30:.1f} GiB, and this machine has {memory / 2**30:.1f} GiB; '
            "stream them (config.data.source 'stream_folder' or 'stream_tfds') or lower config.data.image_size"
        )
