from data_prep.main import main

if __name__ == "__main__":
    main()
