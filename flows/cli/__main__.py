from modcap.flows.cli import main

main()
