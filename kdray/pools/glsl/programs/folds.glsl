// A plane that is mirrored on lines again and again, then painted with shapes.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = centred(at) * between(0, 0.9, 2.0);
    float far = 9.0, sum = 0.0;
    int folds = count(1, 2, 4);
    for (int k = 0; k < folds; k++) {
        p = turn(TAU * random(k + 10) + 0.1 * iTime) * (abs(p) - between(k + 20, 0.2, 0.7));
        far = min(far, abs(random(2) < 0.5 ? length(p) - 0.35 : max(abs(p.x), abs(p.y)) - 0.35));
        sum += p.x;
    }
    vec3 ground = mix(palette(0.5 * sum), palette(length(p)), random(3));
    colour = vec4(mix(ground, ink(4), smoothstep(between(5, 0.06, 0.2), 0.02, far)), 1);
}
