"""What the demo's vision-language model is made of: a stock SmolVLM of a few million parameters, and its processor."""

from __future__ import annotations

import json
from importlib import resources

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

from vla_tune.data.scenes import IMAGE_SIZE, QUESTION_TYPES, sample_scene
from vla_tune.vqa.questions import ask, caption

PATCH_SIZE = 8
SCALE_FACTOR = 2
GRID = IMAGE_SIZE // PATCH_SIZE // SCALE_FACTOR
IMAGE_TOKENS = GRID**2
CAPTION_REQUEST = "describe the picture."
SPECIAL_TOKENS = {
    "bos_token": "<|im_start|>",
    "eos_token": "<end_of_utterance>",
    "pad_token": "<pad>",
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
}


def build_processor(vocab_size: int = 512) -> SmolVLMProcessor:
    """A SmolVLM processor whose byte-level vocabulary knows the demo's questions and Meta-World's instructions."""
    rng = np.random.default_rng(0)
    scenes = [sample_scene(0, "train", index) for index in range(2000)]
    asked = [ask(scene, kind, rng) for scene in scenes for kind in QUESTION_TYPES]
    corpus = [f"{q.text}\nAssistant: {q.answer}" for q in asked if q] + [f"User:{caption(scene)}" for scene in scenes]
    table = resources.files("lerobot.envs").joinpath("metaworld_config.json").read_text()
    corpus += list(json.loads(table)["TASK_DESCRIPTIONS"].values()) * 50
    corpus += [f"{CAPTION_REQUEST}\nAssistant: describe the picture."] * 50

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    named = ("bos_token", "eos_token", "pad_token")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{name: SPECIAL_TOKENS[name] for name in named},
        extra_special_tokens={
            **{name: token for name, token in SPECIAL_TOKENS.items() if name not in named},
            "end_of_utterance_token": SPECIAL_TOKENS["eos_token"],
        },
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    edge = {"longest_edge": IMAGE_SIZE}
    return SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False),
        tokenizer=fast,
        video_processor=SmolVLMVideoProcessor(size=edge, max_image_size=edge),
        image_seq_len=IMAGE_TOKENS,
        chat_template=DEFAULT_CHAT_TEMPLATE,
    )


def build_model(
    processor: SmolVLMProcessor, width: int, layers: int, vision_width: int, vision_layers: int
) -> SmolVLMForConditionalGeneration:
    """A SmolVLM with random weights; the head is untied because lerobot's SmolVLA freezes it by name."""
    tokenizer = processor.tokenizer
    config = SmolVLMConfig(
        vision_config=SmolVLMVisionConfig(
            hidden_size=vision_width,
            intermediate_size=3 * vision_width,
            num_hidden_layers=vision_layers,
            num_attention_heads=vision_width // 32,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=64 * round(width * 8 / 3 / 64),
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            num_key_value_heads=width // 32,
            head_dim=32,
            max_position_embeddings=512,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        scale_factor=SCALE_FACTOR,
        image_token_id=tokenizer.image_token_id,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = SmolVLMForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    return model
