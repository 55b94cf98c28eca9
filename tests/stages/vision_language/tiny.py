"""Tiny random captioners of transformers on disk, one per model type, with their processors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from vlpipe.stages.vision_language.processor import without_videos

SAID = (
    "a the red blue green yellow small large circle square star dog dogs two on left right of picture and is"
)
ASKED = "Describe image Does this figure show Please answer yes no Yes No ? . : User Assistant"
SPECIAL = ["[PAD]", "[UNK]", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
IMAGE = ["<image>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<video>"]
SMOL = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
SMOL += [f"<row_{r}_col_{c}>" for r in range(1, 3) for c in range(1, 3)]
WORDS = [*SPECIAL, *IMAGE, *SMOL, *SAID.split(), *ASKED.split(), '"']
ID = {word: at for at, word in enumerate(WORDS)}
VOCAB = len(WORDS)
CHAT = (
    "{% for m in messages %}User: {% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} Assistant: {% endif %}"
)


def tokenizer(starts: str = "", ends: str = "", **more: Any) -> PreTrainedTokenizerFast:
    fast = Tokenizer(WordLevel(ID, unk_token="[UNK]"))
    fast.pre_tokenizer = Whitespace()
    if starts or ends:
        both = [(t, ID[t]) for t in (starts, ends) if t]
        fast.post_processor = TemplateProcessing(single=f"{starts} $A {ends}".strip(), special_tokens=both)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "bos_token": "<s>", "eos_token": "</s>"}
    special = [t for t in (*IMAGE, *SMOL, *SPECIAL) if t not in names.values()]
    names |= {"additional_special_tokens": special}
    return PreTrainedTokenizerFast(tokenizer_object=fast, model_max_length=512, **{**names, **more})


def grown(model: Any, by: float = 8.0) -> Any:
    """Random weights larger than at the start of training, so that different pictures get different captions."""
    tied = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and id(parameter) not in tied:  # or a text would repeat its first token
                parameter.mul_(by)
    return model


SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def blip(folder: Path) -> None:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    text = {**SIZES, "vocab_size": VOCAB, "encoder_hidden_size": 16, "max_position_embeddings": 128}
    text |= {
        "bos_token_id": ID["[DEC]"],
        "eos_token_id": ID["[SEP]"],
        "sep_token_id": ID["[SEP]"],
        "pad_token_id": 0,
    }
    config = BlipConfig(text_config=text, vision_config={**SIZES, "image_size": 16, "patch_size": 8})
    grown(BlipForConditionalGeneration(config)).save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 16, "width": 16})
    words = tokenizer("[CLS]", "[SEP]", cls_token="[CLS]", sep_token="[SEP]")
    BlipProcessor(images, words).save_pretrained(folder)


def blip2(folder: Path) -> None:
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, OPTConfig
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    text = OPTConfig(
        vocab_size=VOCAB, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=16, max_position_embeddings=128, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    qformer = {**SIZES, "vocab_size": VOCAB, "encoder_hidden_size": 16, "cross_attention_frequency": 1}
    config = Blip2Config(
        vision_config={**SIZES, "image_size": 16, "patch_size": 8},
        qformer_config=qformer,
        text_config=text.to_dict(),
        num_query_tokens=4,
        image_token_index=ID["<image>"],
    )
    grown(Blip2ForConditionalGeneration(config), 5).save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 16, "width": 16})
    words = tokenizer("<s>")
    Blip2Processor(images, words, num_query_tokens=4).save_pretrained(folder)


def git(folder: Path) -> None:
    from transformers import GitConfig, GitForCausalLM, GitProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = GitConfig(
        vision_config={**SIZES, "image_size": 16, "patch_size": 8},
        vocab_size=VOCAB, **SIZES, max_position_embeddings=128, pad_token_id=0, bos_token_id=4, eos_token_id=5,
    )  # fmt: skip
    grown(GitForCausalLM(config)).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    words = tokenizer("[CLS]", "[SEP]", cls_token="[CLS]", sep_token="[SEP]")
    GitProcessor(images, words).save_pretrained(folder)


def florence2(folder: Path) -> None:
    from transformers import Florence2Config, Florence2ForConditionalGeneration, Florence2Processor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    vision = {
        "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1],
        "patch_prenorm": [False, True], "embed_dim": [8, 16], "num_heads": [2, 2], "num_groups": [2, 2],
        "window_size": 4, "projection_dim": 16, "drop_path_rate": 0.0,
    }  # fmt: skip
    text = {
        "model_type": "bart", "vocab_size": VOCAB, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
        "decoder_start_token_id": 3, "forced_bos_token_id": 2, "forced_eos_token_id": 3,
    }  # fmt: skip
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=ID["<image>"])
    model = grown(Florence2ForConditionalGeneration(config), 20)
    model.generation_config.forced_bos_token_id = 2
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}, do_center_crop=False
    )
    images.image_seq_length = 17
    words = tokenizer("<s>", "</s>", image_token="<image>")
    Florence2Processor(images, words).save_pretrained(folder)


def smolvlm(folder: Path) -> None:
    from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMProcessor
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    text = LlamaConfig(
        vocab_size=VOCAB, **SIZES, num_key_value_heads=1, max_position_embeddings=512, pad_token_id=0,
        bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    config = SmolVLMConfig(
        vision_config={**SIZES, "image_size": 16, "patch_size": 4},
        text_config=text,
        scale_factor=2,
        image_token_id=ID["<image>"],
        pad_token_id=0,
    )
    grown(SmolVLMForConditionalGeneration(config), 5).save_pretrained(folder)
    images = SmolVLMImageProcessorPil(
        size={"longest_edge": 16}, max_image_size={"longest_edge": 16}, do_image_splitting=False
    )
    template = CHAT.replace("IMAGE", "<image>")
    words = tokenizer(image_token="<image>", fake_image_token="<fake_token_around_image>")
    processor = without_videos(SmolVLMProcessor)
    processor(images, words, None, image_seq_len=4, chat_template=template).save_pretrained(folder)


def qwen2_vl(folder: Path, kind: str = "Qwen2VL") -> None:
    import transformers
    from transformers import Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    text = {
        "vocab_size": VOCAB, **SIZES, "num_key_value_heads": 1, "max_position_embeddings": 512, "pad_token_id": 0,
        "bos_token_id": 2, "eos_token_id": 3, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
    vision |= {"temporal_patch_size": 2}
    if kind == "Qwen2VL":
        vision |= {"embed_dim": 16, "hidden_size": 16, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 16, "window_size": 16}
        vision |= {"fullatt_block_indexes": [1]}
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    names |= {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    ids = {f"{name}_token_id": ID[token] for name, token in names.items()}
    config_class = getattr(transformers, "Qwen2VLConfig" if kind == "Qwen2VL" else "Qwen2_5_VLConfig")
    config = config_class(text_config=text, vision_config=vision, **ids)
    model_class = "Qwen2VL" if kind == "Qwen2VL" else "Qwen2_5_VL"
    grown(getattr(transformers, f"{model_class}ForConditionalGeneration")(config), 12).save_pretrained(folder)
    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=64, max_pixels=1024
    )
    template = CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    words = tokenizer(image_token="<|image_pad|>")
    without_videos(Qwen2VLProcessor)(images, words, None, chat_template=template).save_pretrained(folder)


def qwen2_5_vl(folder: Path) -> None:
    qwen2_vl(folder, "Qwen2_5VL")


def qwen3_vl(folder: Path) -> None:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    text = {
        "vocab_size": VOCAB, **SIZES, "head_dim": 8, "num_key_value_heads": 1, "max_position_embeddings": 512,
        "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]},
    }  # fmt: skip
    vision = {
        "depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 16, "deepstack_visual_indexes": [0],
        "num_position_embeddings": 64,
    }  # fmt: skip
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    names |= {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    ids = {f"{name}_token_id": ID[token] for name, token in names.items()}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    grown(Qwen3VLForConditionalGeneration(config), 12).save_pretrained(folder)
    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=64, max_pixels=1024
    )
    template = CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    words = tokenizer(image_token="<|image_pad|>")
    without_videos(Qwen3VLProcessor)(images, words, None, chat_template=template).save_pretrained(folder)


def llava(folder: Path) -> None:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    text = LlamaConfig(
        vocab_size=VOCAB, **SIZES, num_key_value_heads=1, max_position_embeddings=512, pad_token_id=0,
        bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    vision = CLIPVisionConfig(**SIZES, image_size=16, patch_size=8)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=ID["<image>"], vision_feature_layer=-1
    )
    grown(LlavaForConditionalGeneration(config), 8).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    LlavaProcessor(
        images,
        tokenizer(image_token="<image>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    ).save_pretrained(folder)


MAKERS: dict[str, Callable[[Path], None]] = {
    "blip": blip,
    "blip2": blip2,
    "git": git,
    "florence2": florence2,
    "smolvlm": smolvlm,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "llava": llava,
}


def make(kind: str, folder: Path) -> Path:
    torch.manual_seed(0)
    MAKERS[kind](folder)
    return folder
