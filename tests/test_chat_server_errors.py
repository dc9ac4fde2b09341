"""Error messages of real servers: which mean too long, busy, or a rejected option."""

import json
import time

import pytest

from stepagent.chat.server_errors import Fault, Option, read_fault


def said(message: str, status: int = 400, **more: object) -> Fault:
    return read_fault(status, {"error": {"message": message, **more}})


TOO_LONG = {
    "OpenAI": [
        "This model's maximum context length is 8192 tokens. However, your messages resulted in "
        "9011 tokens. Please reduce the length of the messages.",
        "This model's maximum context length is 4097 tokens, however you requested 5003 tokens "
        "(1003 in your prompt; 4000 for the completion). Please reduce your prompt; or completion "
        "length.",
        "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in "
        "300211 tokens. Please reduce the length of the messages.",
        "Your input exceeds the context window of this model. Please adjust your input and try "
        "again.",
        "Invalid 'messages[3].content': string too long. Expected a string with maximum length "
        "1048576, but got a string with length 1200000 instead.",
    ],
    "Anthropic": [
        "prompt is too long: 209353 tokens > 199999 maximum",
        "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease "
        "input length or `max_tokens` and try again",
        "messages.1.content: the conversation is too long",
    ],
    "Gemini": [
        "The input token count (1048577) exceeds the maximum number of tokens allowed (1048576).",
        "The input token count exceeds the maximum number of tokens allowed 1048576.",
        "Unable to submit request because the input token count is 32769 but model only supports "
        "up to 32768. Reduce the input token count and try again.",
    ],
    "vLLM": [
        "This model's maximum context length is 4096 tokens. However, you requested 4500 tokens "
        "(4000 in the messages, 500 in the completion). Please reduce the length of the messages "
        "or completion.",
        "This model's maximum context length is 4096 tokens. However, your request has 5000 input "
        "tokens. Please reduce the length of the input messages.",
        "This model's maximum context length is 262144 tokens. However, you requested 0 output "
        "tokens and your prompt contains at least 262145 input tokens, for a total of at least "
        "262145 tokens. Please reduce the length of the input prompt or the number of requested "
        "output tokens. (parameter=input_tokens, value=262145)",
        "'max_tokens' or 'max_completion_tokens' is too large: 500. This model's maximum context "
        "length is 4096 tokens and your request has 4000 input tokens (500 > 4096 - 4000).",
        "You passed 3900 input tokens and requested 500 output tokens. However, the model's "
        "context length is only 4096 tokens, resulting in a maximum input length of 3596 tokens. "
        "Please reduce the length of the input prompt.",
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096. Make "
        "sure that `max_model_len` is no smaller than the number of text tokens.",
        "The prompt (total length 5000) is too long to fit into the model (context length 4096).",
        "Input length (5000) exceeds model's maximum context length (4096).",
        "max_tokens must be at least 1, got -904.",
    ],
    "SGLang": [
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        "Requested token count exceeds the model's maximum context length of 4096 tokens. You "
        "requested a total of 5000 tokens: 4500 tokens from the input messages and 500 tokens for "
        "the completion. Please reduce the number of tokens in the input messages or the "
        "completion to fit within the limit.",
        "Input length (5000 tokens) exceeds the maximum allowed length (4090 tokens). Use a "
        "shorter input or enable --allow-auto-truncate.",
    ],
    "llama.cpp": [
        "the request exceeds the available context size. try increasing the context size or "
        "enable context shift",
        "request (5000 tokens) exceeds the available context size (4096 tokens), try increasing "
        "it",
        "Context size has been exceeded.",
        "input is too large to process. increase the physical batch size",
    ],
    "Ollama": [
        "the prompt is too long: 5000, model maximum context length: 4096",
        "input length exceeds maximum context length",
        "prompt too long; exceeded max context length by 40 tokens",
    ],
    "LM Studio": [
        "Trying to keep the first 5000 tokens when context the overflows. However, the model is "
        "loaded with context length of only 4096 tokens, which is not enough.",
        "The number of tokens to keep from the initial prompt is greater than the context length.",
    ],
    "TGI, Together": [
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 "
        "`inputs` tokens and 500 `max_new_tokens`",
        "Input validation error: `inputs` must have less than 4095 tokens. Given: 5000",
    ],
    "TensorRT-LLM": [
        "The sum of prompt length (5000.0) and query length (0) should not exceed max_num_tokens "
        "(4096)",
        "Prompt length (5000) exceeds maximum input length (4096).",
        "Prompt too long: 5152 tokens exceeds max_seq_len 2048 (leave room for output tokens)",
    ],
    "Mistral": [
        "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum "
        "context length",
        "Prompt contains 32795 tokens, too large for model with 32768 maximum context length",
    ],
    "Cohere": [
        "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received "
        "4900. Try using a shorter prompt, or enable prompt truncating.",
        "too many tokens: size limit exceeded by 1234 tokens. Try using shorter or fewer inputs.",
    ],
    "Bedrock": [
        "Input is too long for requested model.",
        "The model returned the following errors: Input is too long for requested model.",
        "Too many input tokens. Max input tokens: 8192, request input token count: 9000",
        "Input Tokens Exceeded: Number of input tokens exceeds maximum length. Please update the "
        "input to try again.",
        "Malformed input request: expected maxLength: 20000, actual: 25000, please reformat your "
        "input and try again.",
    ],
    "Groq, Cerebras": [
        "Please reduce the length of the messages or completion.",
        "Please reduce the length of the messages or completion. Current length is 9000 while "
        "limit is 8192",
    ],
    "DeepSeek": [
        "This model's maximum context length is 65536 tokens. However, you requested 70000 tokens "
        "(60000 in the messages, 10000 in the completion). Please reduce the length of the "
        "messages or completion.",
    ],
    "xAI": [
        "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
    ],
    "OpenRouter": [
        "This endpoint's maximum context length is 32768 tokens. However, you requested about "
        "40000 tokens (39000 of text input, 1000 in the output). Please reduce the length of "
        'either one, or use the "middle-out" transform to compress your prompt automatically.',
        "Input length 131393 exceeds the maximum allowed input length of 131040 tokens.",
    ],
    "GitHub": [
        "Request body too large for gpt-4o model. Max size: 8000 tokens.",
        "prompt token count of 150000 exceeds the limit of 128000",
    ],
    "Kimi, MiniMax, Qwen, GLM, others": [
        "Invalid request: Your request exceeded model token limit: 131072 (requested: 140000)",
        "invalid params, context window exceeds limit (2013)",
        "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 129024]",
        "Prompt exceeds max length",
        "Prompt \u8d85\u957f",
        "Total tokens of image and text exceed max message tokens.",
        "the number of input tokens 9000 cannot exceed the total tokens limit 8192 for this model",
        "The estimated number of input and maximum output tokens (5000) exceeded this model "
        "context window limit (4096).",
        "tokens in request more than max tokens allowed",
        "The provided prompt is 5000 tokens long, but the maximum supported sequence length is "
        "just 4096 tokens!",
    ],
    "LiteLLM": [
        "litellm.BadRequestError: litellm.ContextWindowExceededError: AnthropicError - "
        '{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: '
        '209353 tokens > 199999 maximum"}}',
        "litellm.ContextWindowExceededError: litellm.BadRequestError: ContextWindowExceededError: "
        "OpenAIException - This model's maximum context length is 4096 tokens. Received Model "
        "Group=m\nAvailable Model Group Fallbacks=None",
    ],
}  # fmt: skip


@pytest.mark.parametrize("message", [m for messages in TOO_LONG.values() for m in messages])
@pytest.mark.parametrize("status", [400, 422, 500])
def test_too_long_is_recognized_in_every_servers_wording(message: str, status: int) -> None:
    fault = said(message, status)
    assert fault.is_too_long
    assert not fault.is_passing


@pytest.mark.parametrize(
    "error",
    [
        {"message": "too much", "code": "context_length_exceeded"},
        {"message": "too much", "type": "exceed_context_size_error", "n_ctx": 4096, "code": 400},
        {"message": "no", "code": "model_context_window_exceeded"},
        {"message": "no", "code": "tokens_limit_reached"},
        {"message": "no", "type": "request_too_large"},
        {
            "message": "Provider returned error",
            "code": 400,
            "metadata": {
                "raw": json.dumps(
                    {"error": {"message": "prompt is too long: 9 tokens > 8 maximum"}}
                ),
                "provider_name": "Anthropic",
            },
        },
    ],
)
def test_codes_and_errors_within_errors_count_too(error: dict[str, object]) -> None:
    assert read_fault(400, {"error": error}).is_too_long
    assert read_fault(200, [{"error": error}]).is_too_long


def test_a_body_that_is_too_large_is_too_long() -> None:
    assert read_fault(413, "<html>413 Request Entity Too Large</html>").is_too_long
    assert read_fault(413, None).is_too_long


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (429, "Rate limit reached for gpt-4o in organization org-1 on tokens per min (TPM): Limit "
              "30000, Used 29000, Requested 2000. Please try again in 2s."),
        (429, "Request too large for gpt-4o in organization org-1 on tokens per min (TPM): Limit "
              "30000, Requested 40000. The input or output tokens must be reduced in order to run "
              "successfully."),
        (413, "Request too large for model `x` in organization `o` service tier `on_demand` on "
              "tokens per minute (TPM): Limit 6000, Requested 7000, please reduce your message "
              "size and try again."),
        (400, "Too many tokens, please wait before trying again."),
        (429, "Too many tokens per day, please wait before trying again."),
        (429, "This request would exceed your organization's rate limit of 40,000 input tokens per "
              "minute."),
        (400, "ThrottlingException: Too many tokens"),
        (429, "Resource has been exhausted (e.g. check quota)."),
        (400, "You exceeded your current quota: input tokens limit"),
        (500, "Internal server error"),
        (503, "The model is overloaded. Please try again later."),
        (500, "The request timed out: it took longer than the maximum of 600 seconds"),
        (408, "Request timeout"),
    ],
)  # fmt: skip
def test_rate_limits_and_failures_are_temporary_and_never_too_long(
    status: int, message: str
) -> None:
    fault = said(message, status)
    assert not fault.is_too_long
    assert fault.is_passing


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens is too large: 50000. This model supports at most 16384 completion tokens, "
        "whereas you provided 50000.",
        "max_tokens: 100000 > 8192, which is the maximum allowed number of output tokens for m",
        "`max_tokens` must be less than or equal to `8192`, the maximum value for `max_tokens` is "
        "less than the `context_window` for this model",
        "Invalid max_tokens value, the valid range of max_tokens is [1, 8192]",
        "Input validation error: `max_new_tokens` must be <= 512. Given: 1024",
        "max_tokens=5000 cannot be greater than max_model_len=4096. Please request fewer output "
        "tokens.",
        "litellm.BadRequestError: invalid model. context_window_fallbacks=None, fallbacks=None",
        "Invalid request: temperature 5 exceeds the maximum of 2",
        "you must provide a model parameter",
        "Invalid value for 'messages': roles are wrong",
        "no money left",
        "",
    ],
)
def test_an_error_that_a_shorter_prompt_would_not_fix_is_not_too_long(message: str) -> None:
    fault = said(message)
    assert not fault.is_too_long
    assert not fault.is_passing


@pytest.mark.parametrize("status", [401, 402, 404])
def test_the_status_of_other_errors_outweighs_their_wording(status: int) -> None:
    fault = said("context length exceeded, try again", status)
    assert not (fault.is_too_long or fault.is_passing)


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [
        (400, "The response was filtered due to the prompt triggering Azure OpenAI's content "
              "management policy. Please modify your prompt and retry.", "content_filter"),
        (400, "Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
         "invalid_prompt"),
        (403, "m requires moderation on OpenInference. Your input was flagged for \"violence\".",
         "403"),
        (400, "Input data may contain inappropriate content.", "data_inspection_failed"),
        (400, "Content Exists Risk", "invalid_request_error"),
        (400, "no", "ResponsibleAIPolicyViolation"),
    ],
)  # fmt: skip
def test_a_rejection_by_a_content_filter_is_recognized_and_permanent(
    status: int, message: str, code: str
) -> None:
    fault = said(message, status, code=code)
    assert fault.is_filtered
    assert not (fault.is_too_long or fault.is_passing)


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (429, {"error": {"code": 429, "message": "no"}}),
        (429, {"error": {"code": "429", "message": "no"}}),
        (502, {"error": {"code": 502, "message": "Provider returned error"}}),
        (503, [{"error": {"code": 503, "message": "no", "status": "UNAVAILABLE"}}]),
        (500, {"object": "error", "code": 500, "message": "no"}),
        (None, {"error": "Model too busy", "error_type": "overloaded"}),
        (None, {"error": {"type": "overloaded_error", "message": "Overloaded"}}),
        (None, {"error": {"code": "rate_limit_exceeded", "message": "slow down"}}),
        (None, {"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}}),
    ],
)
def test_an_error_with_status_200_is_temporary_if_it_says_so(
    status: int | None, content: object
) -> None:
    fault = read_fault(200, content)
    assert fault.status == status
    assert fault.is_passing


@pytest.mark.parametrize("code", [400, 401, 402, 403, 404])
def test_other_errors_with_status_200_are_permanent(code: int) -> None:
    fault = read_fault(200, {"error": {"code": code, "message": "no"}})
    assert (fault.status, fault.is_passing) == (code, False)


REFUSED: dict[Option, list[str]] = {
    "system": [
        "System role not supported",
        "Conversation roles must alternate user/assistant/user/assistant/...",
        "After the optional system message, conversation roles must alternate user/assistant/...",
        "Only user and assistant roles are supported!",
        "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
        "Developer instruction is not enabled for models/gemma-3-27b-it",
        'messages: Unexpected role "system". The Messages API accepts a top-level `system` '
        "parameter, not \"system\" as an input message role.",
        "This model doesn't support system messages. Try again without a system message.",
        "'system' is not one of ['user', 'assistant'] - 'messages.0.role'",
        "Value error: role should be 'user' or 'assistant'",
        "invalid role: system",
    ],
    "temperature": [
        "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default "
        "(1) value is supported.",
        "Unsupported parameter: 'temperature' is not supported with this model.",
        "`temperature` is deprecated for this model.",
        "Unrecognized request argument supplied: temperature",
    ],
    "max_completion_tokens": [
        "Unrecognized request argument supplied: max_completion_tokens",
        "Unsupported parameter: 'max_completion_tokens' is not supported with this model. Use "
        "'max_tokens' instead.",
        "unknown field `max_completion_tokens`, expected one of `messages`, `model`",
        "Additional properties are not allowed ('max_completion_tokens' was unexpected)",
    ],
    "max_tokens": [
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
        "'max_completion_tokens' instead.",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("option", "message"), [(o, message) for o, messages in REFUSED.items() for message in messages]
)
def test_the_rejection_of_an_option_is_recognized(option: Option, message: str) -> None:
    assert said(message).refuses(option)


def test_the_rejection_of_an_option_is_recognized_in_pydantics_format() -> None:
    entry = {"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"],
             "msg": "Extra inputs are not permitted", "input": 512}  # fmt: skip
    fault = read_fault(422, {"detail": [entry]})
    assert fault.refuses("max_completion_tokens")
    assert not fault.refuses("temperature")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("temperature", "temperature: must be between 0 and 2, not 5"),
        ("temperature", "Input validation error: `temperature` must be strictly positive"),
        ("max_completion_tokens", "Invalid max_completion_tokens: must be at most 8192"),
        ("system", "the file system is full"),
        ("system", "the context length is exceeded"),
    ],
)
def test_a_wrong_value_is_not_a_rejection_of_the_option(option: Option, message: str) -> None:
    assert not said(message).refuses(option)


@pytest.mark.parametrize(
    "piece", ["a", " ", "exceed ", "context length ", "prompt ", "max tokens ", "system ", "not "]
)
def test_every_error_is_read_quickly(piece: str) -> None:
    began = time.process_time()
    fault = said(piece * (10**6 // len(piece)))
    assert not (fault.is_filtered or fault.is_passing)
    for option in REFUSED:
        fault.refuses(option)
    assert time.process_time() - began < 5


def test_a_deeply_nested_error_is_read() -> None:
    content: object = "deep"
    for _ in range(500):
        content = {"error": content}
    assert read_fault(400, content) == Fault(400, "", "")
