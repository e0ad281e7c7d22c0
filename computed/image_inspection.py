"""Looks into an image before its first use: `python -m computed.image_inspection FILE FORMAT`.

A program of its own, so that hostile input is parsed in a process with limits, and the parser's memory is gone afterwards.
Exit code 0: the file is what FORMAT says and names no other file. 1: it is not; the reason is on standard output.
"""

from __future__ import annotations

import sys

from oslo_utils.imageutils import format_inspector

ACCEPTED = {"raw": ("raw", "gpt"), "qcow2": ("qcow2",)}


def refusal(path: str, declared: str) -> str:
    """Why the image must not be used, "" when it may."""
    if declared not in ACCEPTED:
        return f"format {declared!r} is not supported"
    try:
        inspector = format_inspector.detect_file_format(path)
        if str(inspector) not in ACCEPTED[declared]:
            return f"content is {inspector}, not {declared}"
        inspector.safety_check()
    except format_inspector.SafetyCheckFailed as error:
        return "unsafe: " + ", ".join(sorted(error.failures))
    except format_inspector.ImageFormatError as error:
        return f"damaged: {error}"
    return ""


if __name__ == "__main__":
    why = refusal(sys.argv[1], sys.argv[2])
    print(why)
    sys.exit(1 if why else 0)
