"""The verb ``bundle``: the folder that ships, with all that proves it; and ``verify``, which proves it again elsewhere."""

from monograph.pipelines.bundle.manifest import MANIFEST, Entry, Manifest
from monograph.pipelines.bundle.verb import Bundle, bundle_model
from monograph.pipelines.bundle.verify import BundleVerification, looks_like_bundle, verify_bundle

__all__ = [
    "MANIFEST", "Bundle", "BundleVerification", "Entry", "Manifest", "bundle_model", "looks_like_bundle", "verify_bundle",
]  # fmt: skip
