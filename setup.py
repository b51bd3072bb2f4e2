"""The distribution `lora-retriever`: the library and its command. Pinned versions are in requirements.txt.

`lora_retriever/profiles/tiny` is a link to `data/tiny`, and `tiny-procedures` is a link to `data/tiny-procedures`. A
wheel has the files of the bundled miniatures in their place.
"""

from setuptools import find_packages, setup

# uvicorn reads requests and waits for them faster with these, where they exist.
FASTER = [f"{name}; sys_platform != 'win32' and implementation_name == 'cpython'" for name in ("httptools", "uvloop")]

setup(
    name="lora-retriever",
    version="0.1.0",
    description="Retrieve, compose and evaluate LoRA adapters: a reproduction of LoraRetriever, and a toolkit",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["lora_retriever*"]),
    package_data={
        "lora_retriever": [
            "profiles/*.yaml",
            "data/*.csv",
            "profiles/tiny/**/*",
            "profiles/tiny-procedures/**/*",
            "metrics/*.yaml",
            "analysis/published/*.csv",
            "analysis/published/*.yaml",
            "watermark/*.txt",
            "py.typed",
        ],
        "lora_retriever.serving": ["page/*"],
        "lora_retriever.report": ["*.j2", "*.css", "*.js"],
    },
    install_requires=[
        "argcomplete>=3",
        "peft-composition",
        "torch>=2.6",
        "transformers>=5,<5.24",  # 5.24 gives the cache of keys and values another name in forward passes
        "peft>=0.21,<0.22",
        "sentence-transformers>=6,<7",
        "accelerate",
        "huggingface_hub",
        "httpx>=0.28",
        "safetensors",
        "numpy",
        "scipy>=1.15",
        "scikit-learn>=1.7",
        "faiss-cpu",
        "filelock>=4.1",
        "nevergrad>=1",
        "pandas>=2.3",
        "nltk",
        "rouge==1.0.1",
        "sacrebleu>=2.5,<3",
        "rouge-score",
        "evaluate>=0.4",
        "datasets",
        "jinja2",
        "matplotlib",
        "pydantic>=2.12",
        "PyYAML",
        "rich",
    ],
    # `serve` is for the server, `ray` and `vllm` for the backends of these names. vLLM 0.32 wants transformers < 5.20,
    # so not what requirements.txt pins. `captions` gives plans a CIDEr score; it is large, because it brings Java
    # programs that are not used here.
    extras_require={
        "serve": ["fastapi>=0.165,<1", "uvicorn>=0.54,<1", "prometheus-client>=0.26,<1", *FASTER],
        "vllm": ["vllm>=0.32"],
        "ray": ["ray[data,serve]>=2.60"],
        "captions": ["pycocoevalcap>=1.2,<2"],
    },
    entry_points={"console_scripts": ["lora-retriever = lora_retriever.cli:main"]},
)
