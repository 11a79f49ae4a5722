// Sums of waves of several directions.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 1.5, 5.0);
    float sum = 0.0;
    for (int k = 0; k < 4; k++) {
        float angle = TAU * random(k);
        sum += sin(dot(p, vec2(cos(angle), sin(angle))) * between(k + 10, 0.5, 1.8)
            + iTime * between(k + 20, -1.0, 1.0));
    }
    sum += sin(length(centred(at) * 3.0) + iTime);
    colour = vec4(palette(sum * between(30, 0.15, 0.4)), 1);
}
