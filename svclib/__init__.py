"""Turn recordings of a voice into an instrument, sing through it, and see how it works.

Ten folders in one line; a folder imports only folders before it (``tests/test_import_order.py``)::

    utils < audio < features < data < models < training < conversion < analysis < notebooks, cli

Importing ``svclib`` itself loads nothing: ``from svclib.features import extract`` loads what that module needs.
"""

import os

__version__ = "0.1.0"

# onnxruntime (from 1.29 on) reports to its maker what it runs, and huggingface_hub who asks, unless this is set before.
for _switch in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_switch, "1")
