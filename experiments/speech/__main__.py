from experiments.speech.command import main

if __name__ == "__main__":
    main()
