"""Chat templates with the structure of the released ones, without their branches for tools and documents."""

from __future__ import annotations

_QWEN_CONTENT = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
)
_QWEN_ANSWER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

QWEN25 = (
    "{% set image_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    f"<|im_start|>{{{{ message['role'] }}}}\n{_QWEN_CONTENT}<|im_end|>\n{{% endfor %}}{_QWEN_ANSWER}"
)
"""Says a few words of its own where there is no system prompt."""

QWEN3 = (
    "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\n' }}"
    "{%- if messages[0].content is string %}{{- messages[0].content }}{%- else %}"
    "{%- for content in messages[0].content %}"
    "{%- if 'text' in content %}{{- content.text }}{%- endif %}{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\n' }}{%- endif %}"
    "{%- set image_count = namespace(value=0) %}{%- for message in messages if message.role != 'system' %}"
    f"{{{{- '<|im_start|>' + message.role + '\n' }}}}{_QWEN_CONTENT}{{{{- '<|im_end|>\n' }}}}{{%- endfor %}}"
    f"{_QWEN_ANSWER}"
)

_ALTERNATE = (
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('After the optional system message, conversation roles must alternate') }}{%- endif %}"
)

MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}"
    f"{{{{- bos_token }}}}{{%- for message in loop_messages %}}{_ALTERNATE}"
    "{%- if message['role'] == 'user' %}"
    "{%- if loop.last and system_message is defined %}"
    "{{- '[INST] ' + system_message + '\n\n' + message['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)
"""Puts a system prompt into the last turn."""

_MINISTRAL_PARTS = (
    "{%- for block in message['content'] %}{%- if block['type'] == 'text' %}{{- block['text'] }}"
    "{%- elif block['type'] in ['image', 'image_url'] %}{{- '[IMG]' }}"
    "{%- else %}{{- raise_exception('Only text, image and image_url chunks are supported') }}{%- endif %}{%- endfor %}"
)

MINISTRAL = (
    "{%- set default_system_message = 'You are Ministral, a Large Language Model. You power an AI assistant.\\n"
    "Your knowledge base was last updated on 2023-10-01.\\nThe current date is {today}.\\n\\n"
    + "When you are not sure about some information, use the tools that there are to fetch it.\\n"
    * 28
    + "' %}{{- bos_token }}"
    "{%- if messages[0]['role'] == 'system' %}{{- '[SYSTEM_PROMPT]' -}}"
    "{%- if messages[0]['content'] is string %}{{- messages[0]['content'] -}}{%- else %}"
    "{%- for block in messages[0]['content'] %}{{- block['text'] }}{%- endfor %}{%- endif %}"
    "{{- '[/SYSTEM_PROMPT]' -}}{%- set loop_messages = messages[1:] %}"
    "{%- else %}{%- set loop_messages = messages %}"
    "{%- if default_system_message != '' %}"
    "{{- '[SYSTEM_PROMPT]' + default_system_message + '[/SYSTEM_PROMPT]' }}{%- endif %}{%- endif %}"
    f"{{%- for message in loop_messages %}}{_ALTERNATE}"
    "{%- if message['role'] == 'user' %}{{- '[INST]' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}"
    f"{_MINISTRAL_PARTS}{{%- endif %}}"
    "{{- '[/INST]' }}{%- elif message['role'] == 'assistant' %}{{- message['content'] + eos_token }}"
    "{%- else %}{{- raise_exception('Only user, assistant and tool roles are supported') }}{%- endif %}{%- endfor %}"
)
"""Says 2400 characters of its own where there is no system prompt."""
