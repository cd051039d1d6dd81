"""The paper's tables as commands, the paper's figures beside ours."""
