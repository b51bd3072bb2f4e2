"""The distribution `lora-retriever`: the library and its command. Pinned versions are in requirements.txt."""

from setuptools import setup

setup(
    name="lora-retriever",
    version="0.1.0",
    description="Retrieve, compose and evaluate LoRA adapters: a reproduction of LoraRetriever, and a toolkit",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=["lora_retriever"],
    package_data={"lora_retriever": ["profiles/*.yaml", "py.typed"]},
    install_requires=[
        "peft-composition",
        "torch>=2.6",
        "transformers>=5,<6",
        "peft>=0.21,<0.22",
        "sentence-transformers>=6,<7",
        "accelerate",
        "huggingface_hub",
        "safetensors",
        "numpy",
        "nltk",
        "rouge==1.0.1",
        "pydantic>=2",
        "PyYAML",
        "rich",
    ],
    entry_points={"console_scripts": ["lora-retriever = lora_retriever.cli:main"]},
)
