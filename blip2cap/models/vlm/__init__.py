"""Vision-language models of transformers: any class of `AutoModelForImageTextToText`, driven in one way."""
