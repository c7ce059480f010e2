"""Text in and out: tokenizer, detokenizer, stop strings, chat templates, logprob pieces. Never imports torch."""
