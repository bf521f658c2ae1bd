"""Chat templates with the branches of the released ones, in fewer words."""

from __future__ import annotations

_PICTURE = (
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
)
_VIDEO = (
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
)
_PARTS = (
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}" + _PICTURE + ""
    "{% elif content['type'] == 'video' or 'video' in content %}" + _VIDEO + ""
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}"
)
_TURN = (
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}" + _PARTS + "{% endif %}<|im_end|>\n"
)
_COUNTS = "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
_ASSISTANT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

QWEN25_TEMPLATE = (
    _COUNTS + "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}" + _TURN + "{% endfor %}" + _ASSISTANT
)
QWEN3_TEMPLATE = (
    _COUNTS + "{%- if tools %}{{- '<|im_start|>system\n' }}"
    "{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}"
    "{{- '# Tools\n\n<tools>' }}{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}"
    "{{- '\n</tools><|im_end|>\n' }}{%- endif %}"
    "{% for message in messages %}"
    "{%- if message.role == 'assistant' and message.tool_calls %}{{- '<|im_start|>assistant' }}"
    "{%- for tool_call in message.tool_calls %}"
    "{{- '\n<tool_call>\n' + (tool_call.function | tojson) + '\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- elif message.role == 'tool' %}"
    "{{- '<|im_start|>user\n<tool_response>\n' }}{{- message.content }}{{- '\n</tool_response><|im_end|>\n' }}"
    "{%- elif not (tools and loop.first and message.role == 'system') %}"
    + _TURN
    + "{% endif %}{% endfor %}"
    + _ASSISTANT
)
MISTRAL_TEMPLATE = (
    '{%- if messages[0]["role"] == "system" %}{%- set system_message = messages[0]["content"] %}'
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}"
    "{%- if not tools is defined %}{%- set tools = none %}{%- endif %}"
    '{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}'
    "{%- set ns = namespace() %}{%- set ns.index = 0 %}{%- for message in loop_messages %}"
    '{%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}'
    '{%- if (message["role"] == "user") != (ns.index % 2 == 0) %}'
    '{{- raise_exception("After the optional system message, user and assistant must alternate") }}{%- endif %}'
    "{%- set ns.index = ns.index + 1 %}{%- endif %}{%- endfor %}"
    "{{- bos_token }}{%- for message in loop_messages %}"
    '{%- if message["role"] == "user" %}'
    "{%- if tools is not none and (message == user_messages[-1]) %}"
    '{{- "[AVAILABLE_TOOLS] " }}{{- tools | tojson }}{{- "[/AVAILABLE_TOOLS]" }}{%- endif %}'
    "{%- if loop.last and system_message is defined %}"
    '{{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}'
    '{%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}'
    "{%- elif message.tool_calls is defined and message.tool_calls is not none %}"
    '{{- "[TOOL_CALLS] " }}{{- message.tool_calls | tojson }}{{- eos_token }}'
    '{%- elif message["role"] == "assistant" %}{{- " " + message["content"] | trim + eos_token }}'
    '{%- elif message["role"] == "tool" %}{{- "[TOOL_RESULTS] " + (message.content | tojson) + "[/TOOL_RESULTS]" }}'
    '{%- else %}{{- raise_exception("Only user and assistant roles are supported") }}{%- endif %}{%- endfor %}'
)
MINISTRAL_PROMPT = (
    "You are a language model.\\nThe current date is {today}, and yesterday was {yesterday}.\\n\\n"
    + "When you\\'re not sure about something, say so, and do not make anything up. " * 32
)
"""In place of some 550 tokens of instructions; the placeholders are in the released one, and nothing fills them."""
_TEXTS = (
    "{%- for block in message['content'] %}{%- if block['type'] == 'text' %}{{- block['text'] }}"
    "{%- else %}{{- raise_exception('Only text chunks are supported.') }}{%- endif %}{%- endfor %}"
)
MINISTRAL_TEMPLATE = (
    "{#- Default system message if no system prompt is passed. #}\n"
    "{%- set default_system_message = '" + MINISTRAL_PROMPT + "' %}\n"
    "{{- bos_token }}\n{%- if messages[0]['role'] == 'system' %}\n    {{- '[SYSTEM_PROMPT]' -}}\n"
    "{%- set message = messages[0] %}"
    "{%- if message['content'] is string %}{{- message['content'] -}}{%- else %}" + _TEXTS + "{%- endif %}"
    "{{- '[/SYSTEM_PROMPT]' -}}{%- set loop_messages = messages[1:] %}{%- else %}"
    "{%- set loop_messages = messages %}{%- if default_system_message != '' %}"
    "{{- '[SYSTEM_PROMPT]' + default_system_message + '[/SYSTEM_PROMPT]' }}{%- endif %}{%- endif %}\n"
    "{%- set tools_definition = '' %}{%- set has_tools = false %}"
    "{%- if tools is defined and tools is not none and tools | length > 0 %}{%- set has_tools = true %}"
    "{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}"
    "{%- set ns = namespace(index=0) %}{%- for message in loop_messages %}"
    "{%- if message.role == 'user' or message.role == 'assistant' %}"
    "{%- if (message['role'] == 'user') != (ns.index % 2 == 0) %}"
    "{{- raise_exception('After the optional system message, roles must alternate.') }}{%- endif %}"
    "{%- set ns.index = ns.index + 1 %}{%- endif %}{%- endfor %}\n"
    "{%- for message in loop_messages %}{%- if message['role'] == 'user' %}"
    "{%- if message['content'] is string %}{{- '[INST]' + message['content'] + '[/INST]' }}{%- else %}"
    "{{- '[INST]' }}{%- for block in message['content'] %}{%- if block['type'] == 'text' %}{{- block['text'] }}"
    "{%- elif block['type'] in ['image', 'image_url'] %}{{- '[IMG]' }}{%- endif %}{%- endfor %}{{- '[/INST]' }}"
    "{%- endif %}{%- elif message['role'] == 'assistant' %}"
    "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}" + _TEXTS + "{%- endif %}"
    "{{- eos_token }}{%- elif message['role'] == 'tool' %}"
    "{{- '[TOOL_RESULTS]' + message['content'] | string + '[/TOOL_RESULTS]' }}{%- else %}"
    "{{- raise_exception('Only user, assistant and tool roles are supported.') }}{%- endif %}{%- endfor %}\n"
)
