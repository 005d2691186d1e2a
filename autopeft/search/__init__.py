"""The search engine: what to try next, given what is known. The only home of Optuna."""
